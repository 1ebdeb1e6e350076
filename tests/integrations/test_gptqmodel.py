"""GPTQModel with our definitions: it runs our codes, and quantizes our factors."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import asvd_q.integrations.gptqmodel as ours  # before gptqmodel, which it sets up
from asvd_q.errors import ModelError
from asvd_q.evaluation.runners import model_runner
from asvd_q.integrations.transformers import FAMILIES
from asvd_q.metrics import relative_error
from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec
from asvd_q.process import quiet
from asvd_q.store import Store
from asvd_q_exporters.gptq import GptqExporter
from asvd_q_exporters.transformers import TransformersExporter
from tests.exporters.checkpoints import TOKENS, Choice, export, family, reference_logits, store_of
from tests.models.test_modeling import FAMILIES as MODELS
from tests.support import WREN, hand_made_store

with quiet():
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.models.auto import MODEL_MAP
    from gptqmodel.quantization.gptq import GPTQ

FACTORISED = (
    "q_proj",
    "qkv_proj",
    "o_proj",
    "out_proj",
    "gate_proj",
    "gate_up_proj",
    "c_fc",
    "fc1",
)
KERNELS = ("TorchLinear", "Linear", "Conv1D")


def steps(model_type: str) -> list[list[str]]:
    definition = MODEL_MAP[model_type]
    blocks = definition.build_layer_modules(definition.module_tree)
    return [names for names in blocks if not any(":!" in name for name in names)]


def test_a_llama_is_quantized_b_before_a() -> None:
    def both(*names: str) -> list[str]:
        return [whole for name in names for whole in (name, f"{name}.BLinear")]

    attention = [f"self_attn.{name}_proj" for name in "qkv"]
    mlp = ["mlp.gate_proj", "mlp.up_proj"]
    assert steps("asvd_q_llama") == [
        both(*attention),
        [f"{name}.ALinear" for name in attention],
        both("self_attn.o_proj"),
        ["self_attn.o_proj.ALinear"],
        both(*mlp),
        [f"{name}.ALinear" for name in mlp],
        both("mlp.down_proj"),
        ["mlp.down_proj.ALinear"],
    ]


def test_layers_right_in_a_block_and_fused_ones_have_factors() -> None:
    assert steps("asvd_q_opt")[-4:] == [
        ["fc1", "fc1.BLinear"],
        ["fc1.ALinear"],
        ["fc2", "fc2.BLinear"],
        ["fc2.ALinear"],
    ]
    phi = [name for names in steps("asvd_q_phi3") for name in names]
    assert {"self_attn.qkv_proj.BLinear", "mlp.gate_up_proj.ALinear"} <= set(phi)
    assert not [name for name in phi if "gate_proj" in name.split(".")]


def test_all_families_are_registered_once() -> None:
    before = {name: MODEL_MAP[f"asvd_q_{name}"] for name in FAMILIES}
    for name in FAMILIES:
        assert ours.register(name) == ours.register(f"asvd_q_{name}") == f"asvd_q_{name}"
    assert {name: MODEL_MAP[f"asvd_q_{name}"] for name in FAMILIES} == before


def test_an_architecture_that_it_does_not_know_is_refused() -> None:
    assert ours.register("gemma") == "asvd_q_gemma"
    with pytest.raises(ModelError, match="GPTQModel has no definition of 'persimmon'"):
        ours.register("persimmon")
    with pytest.raises(ModelError, match="no causal language model called 'nothing'"):
        ours.register("nothing")


@dataclass(frozen=True)
class Wren:
    """The bundled model, and tokens of a real text."""

    source: SourceModel
    tokens: Tensor

    def store(
        self, folder: Path, choose: Callable[[str], tuple[int | None, QuantSpec | None]]
    ) -> Store:
        return hand_made_store(folder, self.source, lambda name, shape: choose(name))

    def logits(self, store: Store) -> Tensor:
        return next(iter(model_runner(self.source, store.replaced).score([self.tokens])))

    def assert_agrees(self, expected: Tensor, found: Tensor, kl: float) -> None:
        """The same first token on 98 in 100, and a divergence in nats below `kl`."""
        assert (expected.argmax(-1) == found.argmax(-1)).float().mean() >= 0.98
        divergence = functional.kl_div(
            found.log_softmax(-1), expected.log_softmax(-1), reduction="none", log_target=True
        )
        assert divergence.sum(-1).mean() < kl


@pytest.fixture(scope="module")
def wren() -> Wren:
    source = SourceModel.open(str(WREN))
    tokens = source.tokenizer.encode((WREN / "README.md").read_text(encoding="utf-8"))
    return Wren(source, torch.tensor([tokens[:512]]))


def load(folder: Path, **options: Any) -> Any:
    options = {"backend": BACKEND.TORCH, "dtype": torch.float16} | options
    with quiet():
        model = GPTQModel.load(str(folder), device="cpu", **options)
    for module in model.model.modules():
        module.__dict__.pop("dequantize_weight", None)  # compiled at the first call, for long
    return model


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.model(tokens).logits.float()
    return found


def kinds(model: Any) -> dict[str, int]:
    counted = Counter(type(module).__name__ for module in model.model.modules())
    return {name: counted[name] for name in KERNELS if counted[name]}


def quantized(folder: Path, target: Path, texts: list[list[int]], **settings: Any) -> None:
    """GPTQModel's own quantization of a checkpoint, saved."""
    with quiet():
        model = GPTQModel.load(str(folder), QuantizeConfig(**settings), device="cpu")
        model.quantize(
            [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in texts], batch_size=1
        )
        model.save(str(target))


@pytest.mark.parametrize("symmetric", [True, False])
def test_our_codes_run(tmp_path: Path, wren: Wren, symmetric: bool) -> None:
    """Both versions of the format; layers in codes, in floats, and of another form elsewhere."""
    spec = QuantSpec(bits=4, group_size=32, symmetric=symmetric)

    def choose(name: str) -> tuple[int | None, QuantSpec | None]:
        if name.endswith("o_proj"):
            return None, None
        if name.endswith("0.mlp.up_proj"):
            return 32, None
        return (64 if name.endswith(("gate_proj", "q_proj")) else None), spec

    store = wren.store(tmp_path / "store", choose)
    folder = export(GptqExporter(), store, tmp_path / "out")
    model = load(folder)
    # 6 blocks of 7 layers: q and gate are two matrices each, the first up two floats, o one each.
    assert kinds(model) == {"TorchLinear": 6 * 8 - 1, "Linear": 6 + 2 + 1}
    wren.assert_agrees(wren.logits(store), logits(model, wren.tokens), kl=1e-4)


def tiny(folder: Path, name: str, options: dict[str, Any]) -> SourceModel:
    """A random model whose sides are multiples of 32, with a tokenizer, which GPTQModel wants."""
    wide = {key: 64 for key in ("hidden_size", "n_embd", "word_embed_proj_dim") if key in options}
    if "head_dim" in options:
        wide |= {"num_key_value_heads": 4, "head_dim": 16}
    source = family(folder, name, **(options | wide))
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, source.path)
    return source


def random_texts() -> list[list[int]]:
    return torch.randint(3, 60, (8, 32), generator=torch.Generator().manual_seed(2)).tolist()


def test_our_factors_are_quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that differ, a layer left out, and A quantized for what the quantized B gives it."""
    source = tiny(tmp_path / "model", *MODELS[0])
    store = store_of(
        tmp_path / "store", source, lambda name: (32 if name.endswith("q_proj") else None, {})
    )
    folder = export(TransformersExporter(), store, tmp_path / "factors")
    seen: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    add_batch = GPTQ.add_batch

    def recorded(self: Any, inp: Tensor, out: Tensor, batch_index: int) -> Any:
        flat = inp.detach().float().reshape(-1, inp.shape[-1]).clone()
        seen[self.name].append((batch_index, flat))
        return add_batch(self, inp, out, batch_index)

    def inputs_of(module: str, block: int) -> Tensor:
        calls = seen[module][8 * block : 8 * (block + 1)]
        return torch.cat([flat for _, flat in sorted(calls, key=lambda call: call[0])])

    monkeypatch.setattr(GPTQ, "add_batch", recorded)
    two_bits, left_out = r"+:.*\.q_proj\.BLinear$", r"-:.*\.0\.mlp\.up_proj$"
    quantized(
        folder,
        tmp_path / "codes",
        random_texts(),
        bits=8,
        group_size=32,
        dynamic={two_bits: {"bits": 2}, left_out: {}},
    )
    model = load(tmp_path / "codes")
    assert kinds(model) == {"TorchLinear": 2 * 8 - 1, "Linear": 2}
    for block in range(2):
        name = f"model.layers.{block}.self_attn.q_proj"
        b, a = (model.model.get_submodule(f"{name}.{side}") for side in ("BLinear", "ALinear"))
        assert (b.bits, a.bits) == (2, 8)
        before, between = (
            inputs_of(f"self_attn.q_proj.{side}", block) for side in ("BLinear", "ALinear")
        )
        floats = store.replaced(name)
        assert floats is not None
        assert relative_error(between, before @ b.dequantize_weight().float()) < 0.02
        assert relative_error(between, before @ floats["B"].T) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_every_family_is_run_and_quantized(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    source = tiny(tmp_path / "model", name, options)
    spec = QuantSpec(bits=8, group_size=32)

    def choose(layer: str, *, codes: bool) -> Choice:
        rank = 32 if layer.endswith(FACTORISED) else None
        of_it = codes and "lm_head" not in layer and "layers.1.mlp" not in layer
        return rank, {"weight": spec, "B": spec, "A": spec} if of_it else {}

    coded = store_of(tmp_path / "coded", source, lambda layer: choose(layer, codes=True))
    model = load(export(GptqExporter(), coded, tmp_path / "gptq"))
    assert relative_error(reference_logits(coded), logits(model, TOKENS)) < 5e-3
    plain = store_of(tmp_path / "plain", source, lambda layer: choose(layer, codes=False))
    factors = export(TransformersExporter(), plain, tmp_path / "factors")
    quantized(factors, tmp_path / "codes", random_texts(), bits=8, group_size=32)
    model = load(tmp_path / "codes")
    assert relative_error(reference_logits(plain), logits(model, TOKENS)) < 3e-2
    matrices_of = [len(layer.quantization) for layer in plain.plan if layer.block is not None]
    assert kinds(model) == {"TorchLinear": sum(matrices_of), "Linear": 1}
