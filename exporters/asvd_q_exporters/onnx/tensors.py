"""The values of the graph's weights, read one at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.errors import ExportError
from asvd_q.plan import LayerPlan
from asvd_q.quantization import QuantizedWeight
from asvd_q.store import Store, StoredLayer
from asvd_q_exporters.onnx.layout import nbits_layout
from asvd_q_exporters.onnx.pack import pack_codes, pack_scales, pack_zero_points
from asvd_q_exporters.onnx.skeleton import Origin

__all__ = ["TensorReader"]


class TensorReader:
    """Reads tensors in the file's layout from a store and its source.

    Args:
        dtype: of floating-point tensors in the file.
    """

    def __init__(self, store: Store, dtype: torch.dtype) -> None:
        self._store = store
        self._dtype = dtype
        self._recent: StoredLayer | None = None

    def read(self, name: str, origin: Origin) -> Tensor:
        """One tensor, contiguous.

        Raises:
            ExportError: values outside the range of the file's type, or codes in act order.
        """
        if origin.layer is not None:
            tensor = self._from_store(origin.layer, origin)
        else:
            tensor = self._store.source.tensor(origin.tensor).to(self._dtype)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
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
        if not isinstance(weight, QuantizedWeight):
            raise ExportError(f"{layer.name}: its store holds no integer codes")
        if weight.permutation is not None:
            raise ExportError(
                f"{layer.name}: its columns are grouped in act order, which ONNX Runtime's "
                "MatMulNBits cannot read; quantize it without act order"
            )
        layout = nbits_layout(weight.shape, weight.spec, self._dtype.itemsize)
        if origin.part == "codes":
            return pack_codes(weight, layout)
        if origin.part == "scales":
            return pack_scales(weight, layout, self._dtype)
        return pack_zero_points(weight, layout)

    def _layer(self, name: str) -> StoredLayer:
        """Codes, scales and zero points of one layer are asked for in a row: it is read once."""
        if self._recent is None or self._recent.record.name != name:
            self._recent = None
            self._recent = self._store.layer(name)
        return self._recent
