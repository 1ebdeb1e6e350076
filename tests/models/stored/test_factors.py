"""Checkpoints of factors: those of the authors of ASVD, and our own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asvd_q.artefact import Exporter
from asvd_q.errors import ModelError
from asvd_q.evaluation.runners import model_runner
from asvd_q.models import SourceModel
from asvd_q.opening import open_anything
from asvd_q.plan import QuantSpec, Slot
from asvd_q_exporters.bitsandbytes import BitsAndBytesExporter
from asvd_q_exporters.gptq import GptqExporter
from asvd_q_exporters.transformers import TransformersExporter, TransformersOptions
from tests.exporters.checkpoints import export, family
from tests.exporters.corrections import Corrected, corrected_store
from tests.models.stored.makers import WEIGHTS, edit, factorised, tiny_gpt2, with_tokenizer
from tests.support import hand_made_store, tiny_llama

TOKENS = torch.arange(24).reshape(2, 12)
LAYER = "model.layers.1.mlp.gate_proj"


def logits(source: SourceModel, *, factors: bool) -> Tensor:
    return model_runner(source, source.factors if factors else None).forward(TOKENS)[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    factorised(llama, tmp_path / "theirs", 16)
    return tmp_path / "theirs"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_are_the_products(kind: str, llama: Path, tmp_path: Path) -> None:
    model = llama if kind == "llama" else tiny_gpt2(tmp_path / "model")
    products = factorised(model, tmp_path / "theirs", 16)
    source, dense = SourceModel.open(str(tmp_path / "theirs")), SourceModel.open(str(model))
    assert type(source.config) is type(dense.config)
    assert source.config_fields["architectures"] == dense.config.architectures
    assert not {"auto_map", "truncation_ranks"} & set(source.config_fields)
    assert source.dtype == torch.float16
    assert source.codes is None
    shapes = {name: info.shape for name, info in source.tensors.items()}
    assert shapes == {name: info.shape for name, info in dense.tensors.items()}
    assert products
    for name, product in products.items():
        weight = source.tensor(f"{name}.weight")
        assert weight.dtype == torch.float32
        torch.testing.assert_close(
            weight.double().T if kind == "gpt2" else weight.double(), product
        )
        assert source.rank(name) == 16
        pair = source.factors(name)
        assert pair is not None
        assert torch.allclose(pair["A"].double() @ pair["B"].double(), product)
    for name, info in dense.tensors.items():
        if name.removesuffix(".weight") not in products:
            assert torch.equal(source.tensor(name), info.load().half()), name
            assert source.rank(name.removesuffix(".weight")) is None


def test_it_runs_without_its_code(folder: Path) -> None:
    source = SourceModel.open(str(folder))
    opened = open_anything(folder)
    kinds = {type(module).__name__ for module in opened.runner.model.modules()}  # type: ignore[attr-defined]
    assert "LowRankLinear" in kinds
    found, _ = opened.runner.forward(TOKENS)
    torch.testing.assert_close(found, logits(source, factors=False), rtol=1e-4, atol=1e-4)


def test_a_head_of_factors_is_not_the_embedding(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", layers=1, tied=True)
    tensors = load_file(model / WEIGHTS)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(shape, generator=generator) for shape in ((128, 8), (8, 64)))
    tensors |= {"lm_head.ALinear.weight": first, "lm_head.BLinear.weight": second}
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["truncation_ranks"] = {"lm_head": 8}
    (model / "config.json").write_text(json.dumps(config))
    source = SourceModel.open(str(model))
    assert torch.equal(source.tensor("lm_head.weight"), first @ second)
    both = logits(source, factors=True), logits(source, factors=False)
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)


SPECS = {
    "transformers": None,
    "gptq": QuantSpec(method="rtn", bits=4, group_size=32, symmetric=True),
    "bitsandbytes": QuantSpec(method="nf4", group_size=32, double_quant=True),
}
EXPORTERS: dict[str, type[Exporter]] = {
    "transformers": TransformersExporter,
    "gptq": GptqExporter,
    "bitsandbytes": BitsAndBytesExporter,
}


@pytest.mark.parametrize("format", EXPORTERS)
def test_our_own_checkpoint_is_a_source(format: str, llama: Path, tmp_path: Path) -> None:
    spec = SPECS[format]
    codes = spec is not None
    store = hand_made_store(
        tmp_path / "store",
        SourceModel.open(str(llama)),
        lambda name, shape: (32, spec) if "mlp" in name else (None, spec),
    )
    chosen = EXPORTERS[format]
    exporter = chosen(chosen.options_model())
    folder = export(exporter, store, tmp_path / "artefact")
    source = SourceModel.open(str(folder))
    assert source.config.model_type == "llama"
    assert set(source.tensors) == set(store.source.tensors)
    assert (source.codes is not None) == codes
    for record in store.records():
        pair = store.layer(record.name).weights
        expected = pair["weight"].dequantize() if "weight" in pair else None
        if expected is None:
            assert source.rank(record.name) == record.rank
            expected = pair["A"].dequantize() @ pair["B"].dequantize()
        found = source.tensor(f"{record.name}.weight").float()
        # Codes times scales are rounded to the type of the scales.
        tolerance = 1e-2 if codes else 1e-5
        assert (found - expected).norm() <= tolerance * expected.norm(), record.name


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_corrections_are_added_to_their_weights(kind: str, tmp_path: Path) -> None:
    options = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64}
    if kind == "LlamaForCausalLM":
        options = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        options |= {"num_attention_heads": 4, "vocab_size": 64}
    spec = QuantSpec(method="rtn", bits=4, group_size=16)
    store = corrected_store(
        tmp_path / "store",
        family(tmp_path / "model", kind, **options),
        lambda _: Corrected(spec, 4),
    )
    exporter = TransformersExporter(TransformersOptions(dequantize=True))
    folder = export(exporter, store, tmp_path / "artefact")
    source = SourceModel.open(str(folder))
    assert store.finished_plan.correction_ranks
    for name in store.finished_plan.correction_ranks:
        matrices = store.replaced(name)
        assert matrices is not None
        slots: dict[Slot, Tensor] = dict(matrices)
        expected = slots["weight"] + slots["A"] @ slots["B"]
        found = source.tensor(f"{name}.weight")
        found = found.T if kind.startswith("GPT2") else found
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert source.rank(name) is None


def test_what_is_missing_or_does_not_fit_is_named(folder: Path) -> None:
    edit(folder, {f"{LAYER}.BLinear.weight": torch.zeros(15, 64).half()})
    with pytest.raises(ModelError, match=r"are no factors of rank 16") as caught:
        SourceModel.open(str(folder))
    assert str(caught.value).startswith(f"{folder / WEIGHTS}: {LAYER}")
    edit(folder, {f"{LAYER}.ALinear.weight": None})
    with pytest.raises(ModelError, match=r"has no ALinear\.weight to its BLinear\.weight"):
        SourceModel.open(str(folder))
    edit(folder, {f"{LAYER}.BLinear.weight": None})
    with pytest.raises(ModelError, match=f"promises factors of {LAYER}, and no file has"):
        SourceModel.open(str(folder))


def test_a_rank_that_is_not_the_promised_one(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["truncation_ranks"][LAYER] = 17
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"are no factors of rank 17, which config\.json names"):
        SourceModel.open(str(folder))


def test_a_weight_beside_factors_is_one_that_they_correct(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    ranks = config["truncation_ranks"]
    config["correction_ranks"] = {LAYER: ranks.pop(LAYER)}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lies no weight, and config\.json calls it corrected"):
        SourceModel.open(str(folder))
    edit(folder, {f"{LAYER}.weight": torch.zeros(96, 64).half()})
    assert SourceModel.open(str(folder)).rank(LAYER) is None
    config["truncation_ranks"] |= config.pop("correction_ranks")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lies \(96, 64\), and .* calls it factorised"):
        SourceModel.open(str(folder))


def test_ranks_that_are_no_mapping(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["truncation_ranks"] = [LAYER]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"ranks in its config\.json are no mapping"):
        SourceModel.open(str(folder))


def test_a_pickle_is_never_loaded(folder: Path) -> None:
    shutil.move(folder / WEIGHTS, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin, a pickle, which is never load"):
        SourceModel.open(str(folder))
