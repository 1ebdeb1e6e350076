"""ONNX Runtime's operators for quantized matrices, by quantization method.

A new operator is a folder, an entry in `OPERATORS`, and one for its reader in `unpack.READERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

from asvd_q_exporters.onnx.bnb4.operator import MatMulBnb4
from asvd_q_exporters.onnx.nbits.operator import MatMulNBits

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from asvd_q.artefact import Refusal
    from asvd_q.plan import FloatType, QuantSpec
    from asvd_q.quantization import StoredWeight
    from asvd_q_exporters.onnx.nodes import MatrixNode

__all__ = ["OPERATORS", "Operator"]


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

    def tensor(self, weight: StoredWeight, part: str, dtype: torch.dtype) -> Tensor:
        """The values of one of that module's parameters.

        Args:
            part: the parameter's name.

        Raises:
            ValueError: the operator cannot hold what is stored.
        """
        ...


_NBITS = MatMulNBits()

OPERATORS: Mapping[str, Operator] = {"rtn": _NBITS, "gptq": _NBITS, "nf4": MatMulBnb4()}
