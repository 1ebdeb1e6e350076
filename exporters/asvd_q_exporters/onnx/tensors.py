"""The values of the graph's weights, read one at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from asvd_q.errors import ExportError
from asvd_q.plan import LayerPlan
from asvd_q.store import Store, StoredLayer
from asvd_q_exporters.onnx.gather.operator import embedding_tensor
from asvd_q_exporters.onnx.operators import Operator
from asvd_q_exporters.onnx.skeleton import Origin

__all__ = ["TensorReader"]


class TensorReader:
    """Reads tensors in the file's layout from a store and its source.

    Args:
        dtype: of floating-point tensors in the file.
        operators: by quantization method.
    """

    def __init__(self, store: Store, dtype: torch.dtype, operators: Mapping[str, Operator]) -> None:
        self._store = store
        self._operators = operators
        self._dtype = dtype
        self._recent: StoredLayer | None = None

    def read(self, name: str, origin: Origin) -> Tensor:
        """One tensor, contiguous; of a narrow type, its bytes (n,).

        Raises:
            ExportError: values outside the range of the file's type, or what the operator cannot
                hold.
        """
        if origin.layer is not None:
            tensor = self._from_store(origin.layer, origin)
        else:
            tensor = self._store.source.tensor(origin.tensor).to(self._dtype)
        if tensor.is_floating_point() and not _all_finite(tensor):
            raise ExportError(
                f"{name}: it holds values that {str(self._dtype).removeprefix('torch.')} cannot; "
                "export with dtype float32"
            )
        return (tensor.T if origin.transposed else tensor).contiguous()

    def _from_store(self, layer: LayerPlan, origin: Origin) -> Tensor:
        assert origin.slot is not None
        weight = self._layer(layer.name).weights[origin.slot]
        if origin.part == "tensor":
            return weight.dequantize(self._dtype)
        spec = layer.quantization[origin.slot]
        assert spec is not None
        try:
            if layer.role == "embedding":
                return embedding_tensor(layer, weight, origin.part, self._dtype)
            return self._operators[spec.method].tensor(weight, origin.part, self._dtype)
        except ValueError as error:
            raise ExportError(f"{layer.name}: {error}") from error

    def _layer(self, name: str) -> StoredLayer:
        """The parts of one layer are asked for in a row: it is read once."""
        if self._recent is None or self._recent.record.name != name:
            self._recent = None
            self._recent = self._store.layer(name)
        return self._recent


def _all_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN; asking each one would take the tensor's memory again."""
    if not tensor.numel():
        return True
    least, largest = torch.aminmax(tensor)  # NaN where one is
    return bool(torch.isfinite(least) & torch.isfinite(largest))
