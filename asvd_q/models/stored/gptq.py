"""GPTQ-format checkpoints, as AutoGPTQ, GPTQModel and optimum write them.

Of a layer K → N: `qweight` int32 (⌈K · bits / 32⌉, N), packed along K; `qzeros` int32
(groups, ⌈N · bits / 32⌉), packed along N; `scales` (groups, N); `g_idx` int32 (K,), the group of
every input channel, which some writers leave out. Width and groups are read from the tensors, so
settings that differ between layers (`dynamic`) need no reading of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from asvd_q.errors import ModelError
from asvd_q.models.stored.base import FLOATS, Matrix, Settings, part, require
from asvd_q.models.stored.bits import unpack_bits, words_for
from asvd_q.models.tensors import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["gptq_matrices"]

_WIDTHS = (2, 3, 4, 8)
_MINUS_ONE = {"gptq": True, "gptq_v2": False}
"""Layout → whether zero points are stored minus one."""


def gptq_matrices(tensors: Mapping[str, TensorInfo], settings: Settings) -> list[Matrix]:
    """See `Format`.

    Raises:
        ModelError: also for a layout that is one kernel's own, such as Marlin's.
    """
    layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if settings.get("is_marlin_format"):
        layout = "marlin"
    if layout not in _MINUS_ONE or settings.get("pack_dtype", "int32") != "int32":
        raise ModelError(
            f"model.path: GPTQ codes in the layout {layout}, packed into "
            f"{settings.get('pack_dtype', 'int32')}, are not read, only "
            f"{' and '.join(_MINUS_ONE)} in int32: save them so, or start from the unquantized "
            "model"
        )
    layers = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    return [_found(tensors, layer, settings, _MINUS_ONE[layout]) for layer in layers]


@dataclass(frozen=True)
class _Packed:
    """The tensors of one layer.

    Attributes:
        inputs: K.
        group_size: of input channels in their order; where `group_index` is None.
        minus_one: whether zero points are stored so.
    """

    layer: str
    qweight: TensorInfo
    qzeros: TensorInfo
    scales: TensorInfo
    group_index: TensorInfo | None
    bits: int
    inputs: int
    group_size: int
    minus_one: bool

    def load(self) -> Tensor:
        """(out, in) in the type of the scales: the difference of two codes times a scale."""
        scales = self.scales.load()
        codes = unpack_bits(self.qweight.load(), self.bits, self.inputs)
        index = self._index(scales.shape[0])
        # The product is exact in float32, so it is rounded once.
        steps = (codes.to(torch.int16) - self._zeros(scales.shape[1])[index]).float()
        return steps.mul_(scales.float()[index]).to(scales.dtype).T.contiguous()

    def _zeros(self, outputs: int) -> Tensor:
        """int16 (groups, out)."""
        words = self.qzeros.load()
        top = (1 << self.bits) - 1
        if not self.minus_one:
            return unpack_bits(words.T, self.bits, outputs).T.to(torch.int16)
        if 32 % self.bits:
            zeros = unpack_bits(words.T, self.bits, outputs).T.to(torch.int16)
            return (zeros + 1) & top
        # One is added to whole words, as it was taken from them: where that carried from one
        # number into the next, it carries back.
        ones = 0xFFFFFFFF // top
        words = (words.long() + ones).to(torch.int32)
        return unpack_bits(words.T, self.bits, outputs).T.to(torch.int16)

    def _index(self, groups: int) -> Tensor:
        """int64 (in,): the group of every input channel."""
        if self.group_index is None:
            return torch.arange(self.inputs) // self.group_size
        index = self.group_index.load().long()
        inside = bool(((index >= 0) & (index < groups)).all())
        require(inside, self.group_index, self.layer, f"g_idx points outside its {groups} groups")
        return index


def _found(
    tensors: Mapping[str, TensorInfo], layer: str, settings: Settings, minus_one: bool
) -> Matrix:
    beside = f"{layer}.qweight"
    qweight = tensors[beside]
    qzeros = part(tensors, layer, "qzeros", beside)
    scales = part(tensors, layer, "scales", beside)
    group_index = tensors.get(f"{layer}.g_idx")
    whole = all(len(info.shape) == 2 and info.numel for info in (qweight, qzeros, scales))
    whole = whole and (group_index is None or len(group_index.shape) == 1)
    types = qweight.dtype == qzeros.dtype == "I32" and scales.dtype in FLOATS
    require(
        whole and types,
        qweight,
        layer,
        "qweight and qzeros are not int32 matrices, or scales no matrix of floats",
    )
    (rows, outputs), groups = qweight.shape, scales.shape[0]
    fitting = [
        bits
        for bits in (settings.get("bits"), *_WIDTHS)
        if bits in _WIDTHS
        and qzeros.shape == (groups, words_for(outputs, bits))
        and (group_index is None or rows == words_for(group_index.numel, bits))
    ]
    require(
        bool(fitting) and scales.shape[1] == outputs,
        qweight,
        layer,
        f"qweight {qweight.shape}, qzeros {qzeros.shape}, scales {scales.shape} and g_idx "
        f"{None if group_index is None else group_index.shape} are not those of one matrix",
    )
    bits = fitting[0]
    inputs = rows * 32 // bits if group_index is None else group_index.numel
    group_size, said = -(-inputs // groups), settings.get("group_size")
    if isinstance(said, int) and said > 0 and -(-inputs // said) == groups:
        group_size = said  # the last group may be a shorter one
    packed = _Packed(
        layer, qweight, qzeros, scales, group_index, bits, inputs, group_size, minus_one
    )
    parts = ("qweight", "qzeros", "scales", "g_idx")
    return Matrix(
        layer=layer,
        shape=(outputs, inputs),
        dtype=scales.dtype,
        parts=tuple(f"{layer}.{suffix}" for suffix in parts),
        load=packed.load,
        bits=bits,
    )
