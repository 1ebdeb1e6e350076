"""Stores of corrected layers, made by hand: codes of W, and the SVD of what they lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asvd_q import __version__
from asvd_q.models import SourceModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import LayerPlan, Plan, QuantSpec, Slot
from asvd_q.quantization import TORCH_TYPES, FloatWeight, StoredWeight, float_type_of, quantize
from asvd_q.records import LayerRecord
from asvd_q.store import Store, StoredLayer, StoreHeader

__all__ = ["Corrected", "corrected_store"]


@dataclass(frozen=True)
class Corrected:
    """W ≈ Q + A·B.

    Attributes:
        weight: of Q.
        rank: of A·B.
        b, a: of B and A; None leaves them in floating point.
        shares: layers of one block with the same word here get one B for their joint residual.
    """

    weight: QuantSpec
    rank: int
    b: QuantSpec | None = None
    a: QuantSpec | None = None
    shares: str | None = None


Choice = Corrected | QuantSpec | None
"""A correction, codes alone, or a layer left alone."""


def corrected_store(folder: Path, source: SourceModel, choose: Callable[[str], Choice]) -> Store:
    """A finished store over every linear layer of the blocks."""
    dtype = TORCH_TYPES[float_type_of(source.dtype)]
    plans: dict[str, LayerPlan] = {}
    matrices: dict[str, Tensor] = {}
    chosen: dict[str, Choice] = {}
    for ref in build_skeleton(source).weights:
        if ref.block is None:
            continue
        chosen[ref.name] = choice = choose(ref.name)
        corrected = isinstance(choice, Corrected)
        plans[ref.name] = LayerPlan(
            name=ref.name,
            kind=ref.kind,
            block=ref.block,
            shape=ref.shape,
            transposed=ref.transposed,
            form="correction" if corrected else "dense",
            rank=choice.rank if corrected else None,
            quantization={"weight": choice.weight, "B": choice.b, "A": choice.a}
            if corrected
            else {"weight": choice},
        )
        matrices[ref.name] = ref.take(source.tensor(ref.tensor_name)).double()
    weights = _weights(plans, matrices, chosen, dtype)
    plan = Plan(float_type=float_type_of(source.dtype), layers=tuple(plans.values()))
    header = StoreHeader(key="test", asvd_q=__version__, source=source.identity, plan=plan)
    store = Store.create(folder, header, source)
    for block in store.blocks():
        layers = [layer for layer in plan if layer.block == block]
        store.write_block(
            block, [StoredLayer(_record(layer), weights.get(layer.name, {})) for layer in layers]
        )
    return Store.open(folder, source)


def _weights(
    plans: dict[str, LayerPlan],
    matrices: dict[str, Tensor],
    chosen: dict[str, Choice],
    dtype: torch.dtype,
) -> dict[str, dict[Slot, StoredWeight]]:
    """What is stored of every layer that is changed."""
    found: dict[str, dict[Slot, StoredWeight]] = {}
    groups: dict[tuple[int | None, str], list[str]] = defaultdict(list)
    for name, choice in chosen.items():
        if isinstance(choice, Corrected):
            groups[plans[name].block, choice.shares or name].append(name)
            found[name] = {"weight": quantize(matrices[name], choice.weight)}
        elif choice is not None:
            found[name] = {"weight": quantize(matrices[name], choice)}
    for names in groups.values():
        residuals = {
            name: matrices[name] - found[name]["weight"].dequantize().double() for name in names
        }
        first = chosen[names[0]]
        assert isinstance(first, Corrected)
        _, s, vt = torch.linalg.svd(torch.cat(list(residuals.values())), full_matrices=False)
        factor = s[: first.rank, None].sqrt() * vt[: first.rank]
        for name, residual in residuals.items():
            choice = chosen[name]
            assert isinstance(choice, Corrected)
            b = _stored(factor, choice.b, dtype)  # of its own: safetensors refuses shared memory
            a = residual @ torch.linalg.pinv(b.dequantize().double())
            found[name] |= {"B": b, "A": _stored(a, choice.a, dtype)}
    return found


def _stored(matrix: Tensor, spec: QuantSpec | None, dtype: torch.dtype) -> StoredWeight:
    return FloatWeight(matrix.to(dtype).contiguous()) if spec is None else quantize(matrix, spec)


def _record(plan: LayerPlan) -> LayerRecord:
    return LayerRecord(
        **plan.model_dump(exclude={"predicted_bytes"}), bytes_before=0, bytes_after=0, errors={}
    )
