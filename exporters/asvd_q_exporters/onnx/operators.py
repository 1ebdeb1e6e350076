"""Operators for quantized matrices, by quantization method: ONNX Runtime's own, or standard ones.

A new operator is a folder, an entry here, and one for its reader in `unpack.READERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from asvd_q_exporters.onnx.bnb4.operator import MatMulBnb4
from asvd_q_exporters.onnx.nbits.operator import MatMulNBits
from asvd_q_exporters.onnx.qdq.operator import DequantizedMatMul

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from asvd_q.artefact import Refusal
    from asvd_q.plan import FloatType, QuantSpec
    from asvd_q.quantization import StoredWeight
    from asvd_q_exporters.onnx.nodes import MatrixNode, NarrowType

__all__ = ["Operator", "OperatorSet", "operators_of"]

OperatorSet = Literal["contrib", "standard"]


class Operator(Protocol):
    """What one operator can hold, and how. The first three load neither torch nor onnx.

    Attributes:
        has_levels: whether what it computes depends on the accuracy level.
    """

    has_levels: ClassVar[bool]

    def refusal(self, layer: str, shape: tuple[int, int], spec: QuantSpec) -> Refusal | None:
        """Why it cannot hold a matrix (out, in) of that layer; None when it can."""
        ...

    def stored_bytes(self, shape: tuple[int, int], spec: QuantSpec, dtype: FloatType) -> int:
        """Bytes of a matrix's initializers.

        Args:
            dtype: of the activations.
        """
        ...

    def node(
        self, shape: tuple[int, int], spec: QuantSpec, dtype: FloatType, accuracy_level: int
    ) -> MatrixNode:
        """What the module of `linear` becomes in the graph, without its bias.

        Args:
            dtype: of the activations around it.
        """
        ...

    def linear(
        self,
        shape: tuple[int, int],
        spec: QuantSpec,
        *,
        bias: bool,
        dtype: torch.dtype,
        accuracy_level: int,
    ) -> nn.Module:
        """A module to trace, whose parameters are placeholders for the initializers.

        Args:
            bias: whether it adds one, a parameter of that name.
            accuracy_level: see `OnnxOptions`; for operators that have one.
        """
        ...

    def narrow_type(self, part: str, spec: QuantSpec) -> NarrowType | None:
        """The file's type of a parameter that torch has no type for; None where it has one."""
        ...

    def tensor(self, weight: StoredWeight, part: str, dtype: torch.dtype) -> Tensor:
        """The values of one of that module's parameters; of a narrow type, its bytes (n,).

        Args:
            part: the parameter's name.

        Raises:
            ValueError: the operator cannot hold what is stored.
        """
        ...


_NBITS, _BNB4, _QDQ = MatMulNBits(), MatMulBnb4(), DequantizedMatMul()

_OPERATORS: Mapping[OperatorSet, Mapping[str, Operator]] = {
    "contrib": {"rtn": _NBITS, "gptq": _NBITS, "nf4": _BNB4},
    "standard": {"rtn": _QDQ, "gptq": _QDQ},
}


def operators_of(operators: OperatorSet) -> Mapping[str, Operator]:
    """Quantization method → what holds its codes; methods that nothing holds are left out."""
    return _OPERATORS[operators]
