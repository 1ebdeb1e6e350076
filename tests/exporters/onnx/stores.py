"""Stores of architectures that are no Llama."""

from __future__ import annotations

from pathlib import Path

import torch

from asvd_q.models import SourceModel
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.quantization import quantize
from asvd_q.records import LayerRecord
from asvd_q.store import Store, StoredLayer, StoreHeader

__all__ = ["eight_bit_store"]


def eight_bit_store(folder: Path, saved: Path) -> Store:
    """All linear layers of a model's blocks in 8 bits.

    Args:
        saved: the model, as transformers saves it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    model = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    source = SourceModel.open(str(saved))
    spec = QuantSpec(bits=8, group_size=32, symmetric=False)
    plans: list[LayerPlan] = []
    weights: list[torch.Tensor] = []
    for name, module in model.named_modules():
        blocks = [int(part) for part in name.split(".") if part.isdigit()]
        if not blocks or not isinstance(module, torch.nn.Linear | Conv1D):
            continue
        weight = module.weight.detach()
        weight = weight.T if isinstance(module, Conv1D) else weight
        plans.append(
            LayerPlan(
                name=name,
                kind=name.rsplit(".", 1)[-1],
                block=blocks[0],
                shape=(weight.shape[0], weight.shape[1]),
                quantization={"weight": spec},
            )
        )
        weights.append(weight)
    header = StoreHeader(
        key="test",
        asvd_q="0",
        source=source.identity,
        plan=Plan(float_type="float32", layers=tuple(plans)),
    )
    store = Store.create(folder, header, source)
    for block in store.blocks():
        store.write_block(
            block,
            [
                StoredLayer(_record(plan), {"weight": quantize(weight, spec)})
                for plan, weight in zip(plans, weights, strict=True)
                if plan.block == block
            ],
        )
    return store


def _record(plan: LayerPlan) -> LayerRecord:
    return LayerRecord(
        **plan.model_dump(exclude={"predicted_bytes"}), bytes_before=0, bytes_after=0, errors={}
    )
