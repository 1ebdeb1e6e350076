"""What gptqmodel's kernels take, as plain arithmetic.

Its portable kernel, `TorchLinear`, takes all that this format holds, on any device: it makes a
matrix of floats from the codes at every call. The fast ones are written for NVIDIA GPUs.

Source: gptqmodel 7.6.0, `nn_modules/qlinear/`: the `SUPPORTS_…` lists and `_validate` of each
class, and `utils/marlin.py`, `marlin_is_tile_aligned`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asvd_q.plan import QuantSpec
    from asvd_q_exporters.gptq.settings import Matrix

__all__ = [
    "EXLLAMA",
    "FAST",
    "MARLIN",
    "TILES",
    "Kernel",
    "aten_fails",
    "marlin_rank_multiple",
]

TILES = "sides that do not fill its tiles"
"""What `Kernel.misses` calls the one thing that another rank may change."""

_ATEN_GROUPS = (32, 64, 128)
"""Groups of torch's int4 kernel for the CPU, which must also divide the input channels."""


@dataclass(frozen=True)
class Kernel:
    """A kernel for GPUs.

    Attributes:
        bits, groups: that it takes; every group must also divide the input channels.
        tiles: multiples of (out, in), one of which a matrix has to be.
        asymmetric: whether it takes zero points of their own, as `gptq_v2` has them.
    """

    name: str
    bits: tuple[int, ...]
    groups: tuple[int, ...]
    tiles: tuple[tuple[int, int], ...]
    asymmetric: bool = False

    def misses(self, shape: tuple[int, int], spec: QuantSpec) -> str | None:
        """The first thing that a matrix (out, in) has and the kernel does not take."""
        rows, columns = shape
        if spec.bits not in self.bits:
            return f"{spec.bits}-bit codes"
        if not (spec.symmetric or self.asymmetric):
            return f"asymmetric {spec.bits}-bit codes"
        if spec.group_size not in self.groups:
            return f"groups of {spec.group_size}"
        if spec.group_size != -1 and columns % spec.group_size:
            return f"input channels that are no multiple of the {spec.group_size} of a group"
        if not any(rows % out == 0 and columns % inner == 0 for out, inner in self.tiles):
            return TILES
        return None


MARLIN = Kernel("Marlin", (4, 8), (-1, 32, 64, 128), ((64, 128), (128, 64)))
EXLLAMA = Kernel("ExLlama", (4,), (-1, 32, 64, 128), ((32, 32),), asymmetric=True)
FAST = (MARLIN, EXLLAMA)
"""Machete, for one generation of GPUs, takes nothing that none of these does."""


def marlin_rank_multiple(matrix: Matrix) -> int | None:
    """Multiple of the rank with which Marlin takes a factor; None where no rank helps."""
    if matrix.slot == "weight":
        return None
    side = matrix.shape[0 if matrix.slot == "A" else 1]
    return 64 if side % 128 == 0 else 128 if side % 64 == 0 else None


def aten_fails(matrix: Matrix) -> bool:
    """Whether gptqmodel's own choice of kernel would fail on a CPU.

    At 4 bits it takes torch's int4 kernels without looking at the shape: they raise for groups
    that do not divide a matrix's input channels and for groups of 16, and the one that it takes
    for one group per output channel is silently wrong for asymmetric codes.
    """
    spec = matrix.spec
    if spec is None or spec.bits != 4 or spec.group_size == 256:
        return False
    return spec.group_size not in _ATEN_GROUPS or bool(matrix.shape[1] % spec.group_size)
