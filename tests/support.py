"""Small models and stores that tests build for themselves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asvd_q import __version__
from asvd_q.models import SourceModel
from asvd_q.plan import FLOAT_BYTES, LayerPlan, Plan, QuantSpec, Slot, store_bytes
from asvd_q.quantization import TORCH_TYPES, FloatWeight, StoredWeight, float_type_of, quantize
from asvd_q.records import LayerRecord
from asvd_q.store import Store, StoredLayer, StoreHeader

WREN = Path(__file__).parent / "data" / "wren"


def tiny_llama(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    intermediate: int = 96,
    heads: int = 4,
    kv_heads: int = 2,
    vocabulary: int = 128,
    tied: bool = False,
    attention_bias: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """A random Llama on disk, without a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        attention_bias=attention_bias,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def tiny_recipe(folder: Path, blocks: int, *, tied: bool = False) -> dict[str, Any]:
    """Sections of a recipe for a tiny model with wren's tokenizer, and a text to calibrate it on.

    Its layers have sides of 16 to 48.
    """
    sizes = {"layers": blocks, "hidden": 32, "intermediate": 48, "vocabulary": 8192}
    model = tiny_llama(folder / "model", tied=tied, **sizes)
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, model)
    text = folder / "text.txt"
    text.write_text((WREN / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    return {
        "model": {"path": str(model)},
        "calibration": {"corpus": str(text), "samples": 3, "window": 16, "batch_size": 2},
    }


def linear_layers(source: SourceModel) -> list[tuple[str, tuple[int, int]]]:
    """Names and shapes of the linear layers inside a Llama's blocks, in model order."""
    order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    names = [name for name in source.tensors if ".layers." in name and "_proj.weight" in name]
    names.sort(key=lambda name: (int(name.split(".")[2]), order.index(name.split(".")[-2])))
    return [
        (name.removesuffix(".weight"), source.tensors[name].shape)  # type: ignore[misc]
        for name in names
    ]


Choice = tuple[int | None, QuantSpec | None]
"""Rank (None: dense) and quantization of every matrix (None: floating point)."""


def hand_made_store(
    folder: Path, source: SourceModel, choose: Callable[[str, tuple[int, int]], Choice]
) -> Store:
    """A finished store made without the compression loop: plain SVD, then `quantize`."""
    float_type = float_type_of(source.dtype)
    plans: list[LayerPlan] = []
    for name, shape in linear_layers(source):
        rank, spec = choose(name, shape)
        slots: dict[Slot, QuantSpec | None] = (
            {"weight": spec} if rank is None else {"B": spec, "A": spec}
        )
        plans.append(
            LayerPlan(
                name=name,
                kind=name.rsplit(".", 1)[-1],
                block=int(name.split(".")[2]),
                shape=shape,
                form="dense" if rank is None else "factors",
                rank=rank,
                quantization=slots,
            )
        )
    plan = Plan(float_type=float_type, layers=tuple(plans))
    header = StoreHeader(key="test", asvd_q=__version__, source=source.identity, plan=plan)
    store = Store.create(folder, header, source)
    for block in store.blocks():
        store.write_block(
            block, [_stored(layer, source, plan) for layer in plan if layer.block == block]
        )
    return Store.open(folder, source)


def _stored(layer: LayerPlan, source: SourceModel, plan: Plan) -> StoredLayer:
    dtype = TORCH_TYPES[plan.float_type]
    weight = source.tensor(f"{layer.name}.weight").double()
    matrices: dict[Slot, Tensor] = {"weight": weight}
    if layer.rank is not None:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        root = s[: layer.rank].sqrt()
        matrices = {
            "B": root[:, None] * vt[: layer.rank],
            "A": u[:, : layer.rank] * root,
        }
    weights: dict[Slot, StoredWeight] = {}
    for slot, matrix in matrices.items():
        spec = layer.quantization[slot]
        weights[slot] = FloatWeight(matrix.to(dtype)) if spec is None else quantize(matrix, spec)
    record = LayerRecord(
        name=layer.name,
        kind=layer.kind,
        block=layer.block,
        shape=layer.shape,
        form=layer.form,
        rank=layer.rank,
        reason=None,
        quantization=layer.quantization,
        bytes_before=layer.shape[0] * layer.shape[1] * FLOAT_BYTES[plan.float_type],
        bytes_after=sum(
            store_bytes(shape, layer.quantization[slot], plan.float_type)
            for slot, shape in layer.slot_shapes().items()
        ),
        errors=_errors(weight, matrices, weights, layer),
        error_basis="weight",
    )
    return StoredLayer(record, weights)


def _errors(
    weight: Tensor,
    exact: dict[Slot, Tensor],
    stored: dict[Slot, StoredWeight],
    layer: LayerPlan,
) -> dict[str, float]:
    """‖Ŵ − W‖ / ‖W‖ after each stage, as the compression loop records it."""

    def error(matrices: dict[Slot, Tensor]) -> float:
        product = matrices["weight"] if layer.rank is None else matrices["A"] @ matrices["B"]
        return float((product - weight).norm() / weight.norm())

    found = {"decompose": error(exact)} if layer.rank is not None else {}
    if any(layer.quantization.values()):
        found["quantize"] = error({slot: one.dequantize().double() for slot, one in stored.items()})
    return found
