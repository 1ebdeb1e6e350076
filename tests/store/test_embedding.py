"""Quantized embeddings in a store, and the model that is put together with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from asvd_q.models import SourceModel
from asvd_q.models.assemble import assemble
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import LayerPlan, QuantSpec
from asvd_q.store import Store
from tests.exporters.checkpoints import family, store_of

LLAMA = {
    "vocab_size": 70,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
NAME = "model.embed_tokens"
INT4 = QuantSpec(method="rtn", bits=4, group_size=32)


def made(folder: Path, *, tied: bool) -> tuple[SourceModel, Store]:
    source = family(folder / "model", "LlamaForCausalLM", tie_word_embeddings=tied, **LLAMA)
    return source, store_of(folder / "store", source, lambda name: (None, {}), embedding=INT4)


def reference(weight: Tensor) -> Tensor:
    """Symmetric 4-bit codes in groups of 32 of each row, from their definition, in float64."""
    values = weight.double()
    parts = []
    for start in range(0, values.shape[1], 32):
        group = values[:, start : start + 32]
        # 15 steps over twice the larger side, and 16 codes, −8 … 7, around the zero point.
        scale = (2 * group.abs().amax(1) / 15).half().double()[:, None]
        parts.append((group / scale).round().clamp(-8, 7) * scale)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("tied", [False, True])
def test_the_skeleton_knows_the_embedding(tmp_path: Path, tied: bool) -> None:
    source, store = made(tmp_path, tied=tied)
    found = build_skeleton(source).embedding
    assert found is not None
    assert (found.name, found.shape, found.role) == (NAME, (70, 48), "embedding")
    assert found.tied == ("lm_head" if tied else None)
    layer = store.plan.layers[0]
    assert (layer.name, layer.part, layer.tied) == (NAME, "embedding", found.tied)
    assert layer.vocabulary == ("tied" if tied else "embedding")


@pytest.mark.parametrize("tied", [False, True])
def test_the_embedding_comes_first_and_back_as_it_was_stored(tmp_path: Path, tied: bool) -> None:
    source, store = made(tmp_path, tied=tied)
    assert store.blocks() == (["embedding", 0, 1] if tied else ["embedding", 0, 1, None])
    assert store.records()[0].as_plan().role == "embedding"
    stored = store.layer(NAME)
    exact = source.tensor(f"{NAME}.weight")
    found = stored.weights["weight"].dequantize().double()
    torch.testing.assert_close(found, reference(exact), rtol=0, atol=1e-7)
    with safe_open(store.folder / "blocks/embedding.safetensors", framework="pt") as file:
        assert all(name.startswith(f"{NAME}.weight.") for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_looks_up_the_codes_and_a_tied_head_multiplies_with_them(
    tmp_path: Path, tied: bool
) -> None:
    source, store = made(tmp_path, tied=tied)
    model = assemble(
        build_skeleton(source).model, "", source, store.replaced, device="cpu", dtype=torch.float64
    )
    codes = store.layer(NAME).weights["weight"].dequantize().double()
    embedding, head = model.get_submodule(NAME), model.get_submodule("lm_head")
    assert isinstance(embedding, torch.nn.Embedding)
    tokens = torch.tensor([[3, 69, 0, 3]])
    assert torch.equal(embedding(tokens), codes[tokens])
    assert (head.weight is embedding.weight) is tied
    if not tied:
        assert torch.equal(head.weight, source.tensor("lm_head.weight").double())


def test_what_an_embedding_cannot_be() -> None:
    def plan(**changes: object) -> LayerPlan:
        fields = {"name": "e", "kind": "e", "block": None, "shape": (70, 48), "role": "embedding"}
        return LayerPlan.model_validate({**fields, "quantization": {"weight": INT4}, **changes})

    nf4 = {"weight": QuantSpec(method="nf4")}
    gptq = {"weight": QuantSpec(method="gptq")}
    assert plan(quantization=gptq, tied="lm_head").vocabulary == "tied"
    for changes, message in [
        ({"quantization": nf4}, "use rtn"),
        ({"quantization": nf4, "tied": "lm_head"}, "use rtn"),
        ({"quantization": gptq}, "no output head shares"),
        ({"block": 0}, "outside the blocks"),
        ({"form": "factors", "rank": 4, "quantization": {"A": None, "B": None}}, "stays dense"),
        ({"role": "linear", "tied": "lm_head"}, "only an embedding"),
    ]:
        with pytest.raises(ValueError, match=message):
            plan(**changes)
