"""compressed-tensors' `pack-quantized`: integer codes of a weight, packed along its rows.

Of a layer (out, in): `weight_packed` int32 (out, ⌈in · bits / 32⌉), every code plus
2^(bits − 1); `weight_scale` (out, groups); `weight_zero_point` int32 (⌈out · bits / 32⌉, groups),
left out where it is zero; `weight_shape`; and at times `weight_g_idx` int32 (in,), the group of
every input channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from asvd_q.errors import ModelError
from asvd_q.models.stored.base import FLOATS, Matrix, Settings, part, require
from asvd_q.models.stored.bits import unpack_bits, words_for
from asvd_q.models.tensors import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["packed_matrices"]

_FORMAT = "pack-quantized"


def packed_matrices(tensors: Mapping[str, TensorInfo], settings: Settings) -> list[Matrix]:
    """See `Format`.

    Raises:
        ModelError: also for another of the library's formats.
    """
    groups = settings.get("config_groups") or {}
    groups = groups.values() if isinstance(groups, Mapping) else ()
    groups = [group for group in groups if isinstance(group, Mapping)]
    formats = {group.get("format") for group in groups}
    formats = {found for found in formats if found} or {settings.get("format")}
    if formats != {_FORMAT}:
        raise ModelError(
            f"model.path: compressed-tensors in the format "
            f"{', '.join(sorted(map(str, formats - {_FORMAT})))} are not read, only {_FORMAT}: "
            "start from the unquantized model"
        )
    if settings.get("transform_config"):
        raise ModelError(
            "model.path: compressed-tensors with a transform_config are not read, because the "
            "model rotates its activations to fit them: start from the unquantized model"
        )
    layers = [
        name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")
    ]
    weights = [group.get("weights") for group in groups]
    named = {found.get("num_bits") for found in weights if isinstance(found, Mapping)}
    widths = [bits for bits in range(1, 9) if bits in named or not named]
    return [_found(tensors, layer, widths) for layer in layers]


@dataclass(frozen=True)
class _Packed:
    """The tensors of one layer (out, in)."""

    layer: str
    packed: TensorInfo
    scale: TensorInfo
    zeros: TensorInfo | None
    group_index: TensorInfo | None
    shape: tuple[int, int]
    bits: int

    def load(self) -> Tensor:
        """(out, in) in the type of the scales: (code − zero point) · scale."""
        scale = self.scale.load()
        scale = scale.reshape(-1, scale.shape[-1]).expand(self.shape[0], -1)
        codes = unpack_bits(self.packed.load().T, self.bits, self.shape[1]).T.to(torch.int16)
        index = self._index(scale.shape[1])
        if self.zeros is None:
            steps = (codes - (1 << (self.bits - 1))).float()
        else:  # both hold the same offset
            zeros = unpack_bits(self.zeros.load(), self.bits, self.shape[0])
            steps = (codes - zeros.to(torch.int16)[:, index]).float()
        return steps.mul_(scale.float()[:, index]).to(scale.dtype)

    def _index(self, groups: int) -> Tensor:
        """int64 (in,): the group of every input channel."""
        columns = self.shape[1]
        if self.group_index is None:
            return torch.arange(columns) // (columns // groups)
        index = self.group_index.load().long()
        inside = bool(((index >= 0) & (index < groups)).all())
        require(inside, self.group_index, self.layer, f"g_idx points outside its {groups} groups")
        return index


def _found(tensors: Mapping[str, TensorInfo], layer: str, widths: Sequence[int]) -> Matrix:
    """One layer.

    Args:
        widths: that the configuration names. Shapes alone do not tell all apart: codes of 7 bits,
            of which earlier versions put four into a word, take as many words as those of 8.
    """
    beside = f"{layer}.weight_packed"
    packed = tensors[beside]
    scale = part(tensors, layer, "weight_scale", beside)
    shape = tuple(int(side) for side in part(tensors, layer, "weight_shape", beside).load())
    zeros = tensors.get(f"{layer}.weight_zero_point")
    group_index = tensors.get(f"{layer}.weight_g_idx")
    require(
        len(shape) == 2 and min(shape) > 0 and scale.numel > 0 and scale.dtype in FLOATS,
        packed,
        layer,
        f"a weight of shape {shape} with scales {scale.dtype} {scale.shape} is no matrix",
    )
    (rows, columns), groups = shape, scale.shape[-1] if scale.shape else 1
    fitting = [bits for bits in widths if packed.shape == (rows, words_for(columns, bits))]
    fits = (
        packed.dtype == "I32"
        and scale.shape in ((rows, groups), (1, 1), (1,))
        and (group_index.shape == (columns,) if group_index is not None else columns % groups == 0)
    )
    if zeros is not None:
        fits = fits and zeros.dtype == "I32" and len(zeros.shape) == 2 and zeros.shape[1] == groups
        fitting = [bits for bits in fitting if zeros.shape[0] == words_for(rows, bits)]
    require(
        fits and len(fitting) > 0,
        packed,
        layer,
        f"weight_packed {packed.shape}, weight_scale {scale.shape} and what is beside them are "
        f"not those of a matrix of {shape}",
    )
    suffixes = ("packed", "scale", "shape", "zero_point", "g_idx")
    return Matrix(
        layer=layer,
        shape=(rows, columns),
        dtype=scale.dtype,
        parts=tuple(f"{layer}.weight_{suffix}" for suffix in suffixes),
        load=_Packed(layer, packed, scale, zeros, group_index, (rows, columns), fitting[0]).load,
        bits=fitting[0],
    )
