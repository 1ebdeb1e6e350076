"""Checkpoints whose layers are pairs of factors, as the authors of ASVD and our exporters write.

`ALinear` (out, rank) times `BLinear` (rank, in) stands for the weight, and the bias is
`ALinear`'s; `truncation_ranks` in config.json names those layers. Our `correction_ranks` name
layers that have a weight of their own, to which the product is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from asvd_q.errors import ModelError
from asvd_q.models.config import RANK_KEYS
from asvd_q.models.stored.base import Matrix, Settings, part, require
from asvd_q.models.tensors import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["A", "B", "factor_matrices"]

A, B = "ALinear.weight", "BLinear.weight"


def factor_matrices(tensors: Mapping[str, TensorInfo], settings: Settings) -> list[Matrix]:
    """See `Format`; the settings are those of `RANK_KEYS`. A rank is checked, not believed."""
    named = [settings.get(key) or {} for key in RANK_KEYS]
    if not all(isinstance(found, Mapping) for found in named):
        raise ModelError("model.path: the ranks in its config.json are no mapping of layers")
    ranks = {name: rank for found in named for name, rank in found.items()}
    layers = {name.removesuffix(f".{B}"): None for name in tensors if name.endswith(f".{B}")}
    for name in ranks:
        # Files may leave out the base model's prefix.
        if name not in layers and name.partition(".")[2] not in layers:
            raise ModelError(
                f"{next(iter(tensors.values())).file.parent}: config.json promises factors of "
                f"{name}, and no file has its BLinear: the checkpoint is incomplete, copy it again"
            )
    short = {name.partition(".")[2]: rank for name, rank in ranks.items()}
    corrected = {name for full in named[1] for name in (full, full.partition(".")[2])}
    return [
        _matrix(tensors, layer, ranks.get(layer, short.get(layer)), layer in corrected)
        for layer in layers
    ]


def _matrix(
    tensors: Mapping[str, TensorInfo], layer: str, rank: int | None, corrected: bool
) -> Matrix:
    second = tensors[f"{layer}.{B}"]
    first = part(tensors, layer, A, f"{layer}.{B}")
    fits = len(first.shape) == len(second.shape) == 2 and first.shape[1] == second.shape[0]
    require(
        fits and second.shape[0] == rank,
        second,
        layer,
        f"ALinear {first.shape} and BLinear {second.shape} are no factors of rank {rank}, which "
        "config.json names",
    )
    shape = first.shape[0], second.shape[1]
    weight = tensors.get(f"{layer}.weight")
    beside = None if weight is None else weight.shape
    require(
        beside == (shape if corrected else None),
        second,
        layer,
        f"beside its factors of {shape} lies {'no weight' if beside is None else beside}, and "
        f"config.json calls it {'corrected' if corrected else 'factorised'}",
    )
    parts = [f"{layer}.{A}", f"{layer}.{B}"]
    bias = f"{layer}.ALinear.bias"
    return Matrix(
        layer=layer,
        shape=shape,
        dtype=second.dtype,
        parts=tuple(parts if weight is None else [f"{layer}.weight", *parts]),
        load=partial(_product, first, second, weight),
        renamed={bias: f"{layer}.bias"} if bias in tensors else {},
    )


def _product(first: TensorInfo, second: TensorInfo, weight: TensorInfo | None) -> Tensor:
    """A·B (out, in) in float32, where a rank stays what it is; and what it corrects."""
    product = first.load().float() @ second.load().float()
    return product if weight is None else product + weight.load().float()
