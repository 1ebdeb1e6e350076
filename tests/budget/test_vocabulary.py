"""What is predicted of embedding and head, against autograd in float64; and what is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asvd_q.budget import sweep as sweep_module
from asvd_q.budget.choice import choose
from asvd_q.budget.counting import Count
from asvd_q.budget.evidence import LayerEvidence
from asvd_q.budget.explicit import with_plan
from asvd_q.budget.offers import layer_offers
from asvd_q.budget.solving import budget_offering, solve_budget
from asvd_q.budget.sweep import LayerTried, TrialCache, sweep
from asvd_q.budget.vocabulary import EmbeddingEvidence, VocabularyTrials
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.plan import QuantSpec
from asvd_q.quantization import quantize
from asvd_q.search.allocation import Budget
from asvd_q.search.planning import make_plan, plan_layer
from tests.budget.given import recipe, without_reasons
from tests.budget.sweeping import WINDOWS, likeliest_labels, open_model, random_errors
from tests.compression.job import quiet
from tests.exporters.checkpoints import family
from tests.models.families import plain_model, save_family

PREDICTED = WINDOWS.shape[0] * (WINDOWS.shape[1] - 1)
VOCABULARY = {"method": "rtn", "embedding": {}, "head": {}}
GEMMA3 = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 4,
    "pad_token_id": 0,
    "final_logit_softcapping": 5.0,
}
Evidence = tuple[EmbeddingEvidence | None, LayerEvidence | None]


def saved(name: str, folder: Path, *, tied: bool) -> Path:
    if name == "gemma3":  # which multiplies the rows as it looks them up
        return family(folder, "Gemma3ForCausalLM", tie_word_embeddings=tied, **GEMMA3).path
    return save_family(name, folder, tied=tied)


def evidence_of(
    model: BlockwiseModel, folder: Path, *, sample: int = WINDOWS.numel(), batch_size: int = 3
) -> dict[str, Evidence]:
    """What a sweep collects of embedding and head; nothing is tried."""
    found: dict[str, Evidence] = {}

    def keep(given: Any, model: Any, weight: Any, count: Any, cost: Any, *evidence: Any) -> Any:
        embedding, head = evidence
        found[weight.name] = embedding, head
        return LayerTried()

    given = recipe(
        calibration={"corpus": "python-docs", "batch_size": batch_size},
        budget={"bits_per_weight": 4, "sample": sample},
        quantize=VOCABULARY,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "_tried", lambda *rest: LayerTried())
        patch.setattr(sweep_module, "_tried_codes", keep)
        cache = TrialCache(folder, f"{sample}-{batch_size}".ljust(16, "-"))
        sweep(given, model, WINDOWS, Count("float32"), cache)
    return found


def by_autograd(folder: Path, errors: Tensor) -> tuple[float, float]:
    """½ Σ (g · δy)² per predicted token, for errors of the embedding's rows and of the head's."""
    plain = plain_model(folder).double().requires_grad_(True)
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen.extend([args[0].detach(), output])

    handles = [module.register_forward_hook(keep) for module in (embedding, head)]
    logits = plain(WINDOWS, use_cache=False).logits[:, :-1]
    labels = logits.detach().argmax(-1)
    nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    _, looked_up, inputs, outputs = seen
    for handle in handles:
        handle.remove()
    assert looked_up.grad is not None
    assert outputs.grad is not None
    # The change of what is looked up, by looking it up in the errors.
    with torch.no_grad():
        embedding.weight.copy_(errors)
        change = embedding(WINDOWS)
    rows = float((looked_up.grad * change).sum(-1).square().sum() / 2 / PREDICTED)
    d = (outputs.grad * (inputs @ errors.double().T)).sum(-1)
    return rows, float(d.square().sum() / 2 / PREDICTED)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "gemma3"])
def test_losses_of_all_tokens_are_their_definition(
    name: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    likeliest_labels(monkeypatch)
    folder = saved(name, tmp_path / "model", tied=tied)
    model = open_model(folder)
    embedding_ref = model.skeleton.embedding
    assert embedding_ref is not None
    assert (embedding_ref.tied is not None) is tied
    errors = random_errors(embedding_ref.shape)
    rows, logits = by_autograd(folder, errors)
    for batch_size in (2, 7):
        found = evidence_of(model, tmp_path, batch_size=batch_size)
        assert set(found) == {embedding_ref.name, *([] if tied else [model.skeleton.head])}
        embedding, _ = found[embedding_ref.name]
        _, head = found[embedding_ref.name if tied else str(model.skeleton.head)]
        assert embedding is not None
        assert head is not None
        assert head.loss(head.inputs @ errors.T) == pytest.approx(logits, rel=1e-3)
        # Every row that was seen; what is said of the others is left out.
        unseen = torch.bincount(WINDOWS.flatten(), minlength=64) == 0
        of_seen = torch.where(unseen[:, None], 0.0, errors)
        share = embedding_share(WINDOWS)
        assert embedding.loss(of_seen) == pytest.approx((1 - share) * rows, rel=1e-3)


def embedding_share(windows: Tensor) -> float:
    """Share of tokens to come that were never seen: that of those seen once (Good, 1953)."""
    values = windows.flatten().tolist()
    counts = {token: values.count(token) for token in set(values)}
    if len(counts) == 64:
        return 0.0
    return max(sum(1 for count in counts.values() if count == 1), 1) / len(values)


def test_a_sample_says_about_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    likeliest_labels(monkeypatch)
    model = open_model(save_family("llama", tmp_path / "model", tied=True))
    errors = random_errors((64, 32))
    [(whole, at_head)] = evidence_of(model, tmp_path).values()
    [(half, head_of_half)] = evidence_of(model, tmp_path, sample=42).values()
    assert whole is not None
    assert half is not None
    assert at_head is not None
    assert head_of_half is not None
    assert len(half.tokens) == len(head_of_half.inputs) == 42
    assert half.loss(errors) == pytest.approx(whole.loss(errors), rel=0.5)
    assert torch.equal(half.counts, whole.counts)
    assert half.energy == pytest.approx(whole.energy)


def test_rows_that_no_token_looked_up_count_for_what_is_to_come() -> None:
    tokens = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 4, 4])  # one of ten tokens is there once
    gradients = torch.ones(10, 8)
    counts = torch.bincount(tokens, minlength=8)
    evidence = EmbeddingEvidence(tokens, gradients, 1.0, counts, energy=8.0)
    errors = torch.zeros(8, 8)
    errors[5:] = 0.5  # |δ|² = 2 in every unseen row
    assert evidence.loss(errors) == pytest.approx(0.1 * 0.5 * 8.0 * 2 / 8)
    errors[0, 0] = 1.0  # (g · δ)² = 1 in three of ten tokens
    assert evidence.loss(errors) == pytest.approx(0.1 * 1.0 + 0.9 * 0.5 * 0.3)
    everything = EmbeddingEvidence(tokens, gradients, 1.0, counts.clamp(min=2), energy=8.0)
    assert everything.loss(errors) == pytest.approx(0.5 * 0.3)


def test_a_tied_matrix_loses_both_with_the_same_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    likeliest_labels(monkeypatch)
    model = open_model(save_family("llama", tmp_path / "model", tied=True))
    ref = model.skeleton.embedding
    assert ref is not None
    [(embedding, head)] = evidence_of(model, tmp_path).values()
    assert head is not None
    weight = model.source.matrix(ref)
    for spec in (QuantSpec(bits=3, group_size=16), QuantSpec(method="gptq", bits=3, group_size=16)):
        layer = plan_layer(ref, {"weight": spec}, None, "float32")
        trials = [
            VocabularyTrials(weight, "float32", embedding=one, head=other)
            for one, other in ((embedding, head), (embedding, None), (None, head))
        ]
        if spec.method == "rtn":
            both, rows, logits = (one.loss(layer) for one in trials)
            assert both == pytest.approx(rows + logits, rel=1e-6)
        else:
            codes = quantize(weight.double(), spec, head.statistics.gram).dequantize()
            errors = codes.float() - weight
            assert embedding is not None
            expected = embedding.loss(errors) + head.loss(head.inputs @ errors.T)
            assert trials[0].loss(layer) == pytest.approx(expected, rel=1e-6)
        assert trials[0].loss(plan_layer(ref, {"weight": None}, None, "float32")) == 0


BUDGET = {"size": "1 KB", "bits": [2, 4, 8], "group_sizes": [16, 32], "ranks": 2}


@pytest.mark.parametrize("tied", [False, True])
def test_a_budget_picks_the_bits_of_embedding_and_head(tied: bool, tmp_path: Path) -> None:
    model = open_model(save_family("llama", tmp_path / "model", tied=tied))
    given = recipe(budget=BUDGET, quantize=VOCABULARY, decompose=None)
    count = Count("float32")
    _, offering = budget_offering(given, model, WINDOWS, count, tmp_path / "search", quiet)
    names = ["model.embed_tokens"] if tied else ["model.embed_tokens", "lm_head"]
    vocabulary = [layer.name for layer in offering.base if layer.block is None]
    assert vocabulary == names
    total = sum(info.numel for info in model.source.tensors.values())
    assert offering.base.predicted_bytes == 4 * total
    for name in names:
        forms = offering.candidates[name]
        assert forms[0].layer == offering.base.layer(name)  # floats
        assert forms[0].loss == 0
        assert min(form.loss for form in forms[1:]) > 0
        assert {spec_bits(form.layer) for form in forms} == {None, 2, 4, 8}
        for form in forms:
            assert form.layer is not None
            assert form.bytes == form.layer.predicted_bytes
    picked: set[int | None] = set()
    most = sum(forms[0].bytes for forms in offering.candidates.values())
    for share in (0.08, 0.1, 0.15, 0.2, 0.27, 0.5, 1.0):
        choice = choose(offering, Budget("bytes", share * most))
        explicit = with_plan(given, choice.plan)
        made = make_plan(explicit, model.source, model.skeleton, "float32")
        assert without_reasons(made) == without_reasons(choice.plan)
        assert made.other_bytes == choice.plan.other_bytes
        assert choice.total_bytes == choice.plan.predicted_bytes
        picked |= {spec_bits(choice.plan.layer(name)) for name in names}
    assert picked >= {2, 4, 8, None}


def spec_bits(layer: Any) -> int | None:
    spec = layer.quantization["weight"]
    return None if spec is None else int(spec.bits)


def test_a_size_is_of_the_whole_model(tmp_path: Path) -> None:
    model = open_model(save_family("llama", tmp_path / "model", tied=True))
    size = "16 KB"
    given = recipe(budget={**BUDGET, "size": size}, quantize=VOCABULARY, decompose=None)
    count = Count("float32")
    without = recipe(budget={**BUDGET, "size": size}, quantize={"method": "rtn"}, decompose=None)
    found = solve_budget(given, model, WINDOWS, count, tmp_path / "with", quiet).choice
    other = solve_budget(without, model, WINDOWS, count, tmp_path / "without", quiet).choice
    assert found.total_bytes <= 16_000
    assert other.total_bytes <= 16_000
    assert found.plan.weights == other.plan.weights + 64 * 32
    assert found.loss < other.loss


def test_forms_of_an_embedding_are_codes_alone(tmp_path: Path) -> None:
    skeleton = open_model(save_family("llama", tmp_path / "model")).skeleton
    given = recipe(quantize={**VOCABULARY, "method": "nf4"}, correct={})
    refs = [ref for ref in skeleton.by_name.values() if ref.block is None]
    assert [ref.vocabulary for ref in refs] == ["embedding", "head"]
    methods = []
    for ref in refs:
        offers = layer_offers(ref, given, Count("float32"))
        assert {offer.layer.form for offer in offers} == {"dense"}
        specs = [offer.layer.quantization["weight"] for offer in offers]
        assert specs[0] is None
        methods.append({spec.method for spec in specs if spec is not None})
    assert methods == [{"rtn"}, {"nf4"}]


def test_trials_are_taken_up_again(tmp_path: Path) -> None:
    model = open_model(save_family("llama", tmp_path / "model"))
    given = recipe(quantize=VOCABULARY, decompose=None)
    count = Count("float32")
    whole, _ = budget_offering(given, model, WINDOWS, count, tmp_path / "whole", quiet)
    assert set(whole) == set(model.skeleton.by_name)
    for lost in ("lm_head", "model.embed_tokens", "model.layers.1.mlp.up_proj"):
        [path] = (tmp_path / "whole").rglob(f"{lost}.json")
        path.unlink()
        again, _ = budget_offering(given, model, WINDOWS, count, tmp_path / "whole", quiet)
        assert str(again[lost]) == str(whole[lost])
