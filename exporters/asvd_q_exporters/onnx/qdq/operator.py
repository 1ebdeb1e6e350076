"""What `DequantizeLinear` can hold. Heavy modules are imported where they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from asvd_q.artefact import Refusal
from asvd_q.plan import FLOAT_BYTES
from asvd_q_exporters.onnx.nodes import MatrixNode, NarrowType, Part
from asvd_q_exporters.onnx.qdq.layout import BLOCK_SIZES, fitting_block, qdq_layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from asvd_q.plan import FloatType, QuantSpec
    from asvd_q.quantization import StoredWeight

__all__ = ["DequantizedMatMul"]


class DequantizedMatMul:
    """An `asvd_q_exporters.onnx.operators.Operator`.

    The file says nothing of accuracy levels: a session's own setting decides that of the kernel
    that ONNX Runtime puts in its place.
    """

    has_levels: ClassVar[bool] = True

    def refusal(self, layer: str, shape: tuple[int, int], spec: QuantSpec) -> Refusal | None:
        """Groups in act order, and those that no block divides."""
        columns = shape[1]
        if spec.permutes(columns):
            return Refusal(
                layer,
                "its columns are grouped in act order, which DequantizeLinear cannot read",
                "set static_groups: true beside act_order, or export it with gptq",
            )
        group = spec.group_width(columns)
        if group < columns and fitting_block(group, columns) is None:
            sizes = [str(size) for size in BLOCK_SIZES if columns % size == 0]
            return Refusal(
                layer,
                f"DequantizeLinear's blocks of {', '.join(map(str, BLOCK_SIZES))} columns do not "
                f"divide both groups of {group} and rows of {columns}",
                f"use group_size {' or '.join([*sizes, '-1'])}",
            )
        return None

    def stored_bytes(self, shape: tuple[int, int], spec: QuantSpec, dtype: FloatType) -> int:
        """Codes, scales in the activations' type, and zero points."""
        return qdq_layout(shape, spec).nbytes(FLOAT_BYTES[dtype])

    def node(
        self, shape: tuple[int, int], spec: QuantSpec, dtype: FloatType, accuracy_level: int
    ) -> MatrixNode:
        """See `asvd_q_exporters.onnx.operators.Operator`."""
        layout = qdq_layout(shape, spec)
        parts = [Part(layout.codes_shape, layout.code_type), Part(layout.scales_shape, dtype)]
        if layout.zero_points:
            parts.append(Part(layout.scales_shape, layout.code_type))
        attributes = tuple(layout.attributes.items())
        return MatrixNode(
            *shape, "DequantizeLinear", "", attributes, tuple(parts), dtype, accuracy_level
        )

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
        from asvd_q_exporters.onnx.qdq.linear import QdqLinear

        return QdqLinear(qdq_layout(shape, spec), bias, dtype)

    def narrow_type(self, part: str, spec: QuantSpec) -> NarrowType | None:
        """Codes and zero points of 4 bits."""
        if part == "scales" or spec.bits > 4:
            return None
        return "int4" if spec.symmetric else "uint4"

    def tensor(self, weight: StoredWeight, part: str, dtype: torch.dtype) -> Tensor:
        """See `asvd_q_exporters.onnx.operators.Operator`."""
        from asvd_q_exporters.onnx.qdq.pack import qdq_tensor

        return qdq_tensor(weight, part, dtype)
