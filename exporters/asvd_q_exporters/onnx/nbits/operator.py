"""What `MatMulNBits` can hold. Heavy modules are imported where they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from asvd_q.artefact import Refusal
from asvd_q.plan import FLOAT_BYTES
from asvd_q_exporters.onnx.nbits.layout import BLOCK_SIZES, nbits_layout
from asvd_q_exporters.onnx.nodes import CONTRIB, MatrixNode, NarrowType, Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from asvd_q.plan import FloatType, QuantSpec
    from asvd_q.quantization import StoredWeight

__all__ = ["MatMulNBits", "codes_refusal"]


class MatMulNBits:
    """An `asvd_q_exporters.onnx.operators.Operator`."""

    has_levels: ClassVar[bool] = True

    def refusal(self, layer: str, shape: tuple[int, int], spec: QuantSpec) -> Refusal | None:
        """See `asvd_q_exporters.onnx.operators.Operator`."""
        return codes_refusal("MatMulNBits", layer, shape, spec)

    def stored_bytes(self, shape: tuple[int, int], spec: QuantSpec, dtype: FloatType) -> int:
        """Codes, scales in the activations' type, and zero points."""
        scale_bytes = FLOAT_BYTES[dtype]
        return nbits_layout(shape, spec, scale_bytes).nbytes(scale_bytes)

    def linear(
        self,
        shape: tuple[int, int],
        spec: QuantSpec,
        *,
        bias: bool,
        dtype: torch.dtype,
        accuracy_level: int,
    ) -> nn.Module:
        """See `asvd_q_exporters.onnx.operators.Operator`."""
        from asvd_q_exporters.onnx.nbits.linear import NBitsLinear

        layout = nbits_layout(shape, spec, dtype.itemsize)
        return NBitsLinear(layout, bias, dtype, accuracy_level)

    def node(
        self, shape: tuple[int, int], spec: QuantSpec, dtype: FloatType, accuracy_level: int
    ) -> MatrixNode:
        """See `asvd_q_exporters.onnx.operators.Operator`."""
        layout = nbits_layout(shape, spec, FLOAT_BYTES[dtype])
        parts = [Part(layout.codes_shape, "uint8"), Part(layout.scales_shape, dtype)]
        if layout.zero_points:
            parts.append(Part(layout.zero_points_shape, "uint8"))
        attributes = tuple(layout.attributes(accuracy_level).items())
        return MatrixNode(*shape, "MatMulNBits", CONTRIB, attributes, tuple(parts), dtype)

    def narrow_type(self, part: str, spec: QuantSpec) -> NarrowType | None:
        """None: codes are packed into bytes, and their type is one of 8 bits."""
        return None

    def tensor(self, weight: StoredWeight, part: str, dtype: torch.dtype) -> Tensor:
        """See `asvd_q_exporters.onnx.operators.Operator`."""
        from asvd_q_exporters.onnx.nbits.pack import nbits_tensor

        return nbits_tensor(weight, part, dtype)


def codes_refusal(
    operator: str, layer: str, shape: tuple[int, int], spec: QuantSpec
) -> Refusal | None:
    """Groups in act order, and sizes that no block has, for operators with this layout."""
    columns = shape[1]
    if spec.permutes(columns):
        return Refusal(
            layer,
            f"its columns are grouped in act order, which ONNX Runtime's {operator} cannot read",
            "set static_groups: true beside act_order, or export it with gptq",
        )
    group = spec.group_width(columns)
    if group < columns and group not in BLOCK_SIZES:
        nearest = min(BLOCK_SIZES, key=lambda size: abs(size - group))
        return Refusal(
            layer,
            f"ONNX Runtime's {operator} has no blocks of {group} columns",
            f"use group_size {nearest} (16, 32, 64, 128, 256 and -1 work)",
        )
    return None
