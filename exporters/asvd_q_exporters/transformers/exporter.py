"""The transformers exporter. Heavy modules are imported where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, model_validator

from asvd_q.artefact import Refusal
from asvd_q.plan import FLOAT_BYTES
from asvd_q.usage import Usage
from asvd_q_exporters._exporter import CheckpointExporter
from asvd_q_exporters._options import TORCH_BOUNDS, CheckpointOptions, float_bytes
from asvd_q_exporters._runner import quiet

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.evaluation.torch_runner import TorchRunner
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, LayerPlan, Plan, QuantSpec, Slot
    from asvd_q_exporters._checkpoint import CheckpointFormat

__all__ = ["TransformersExporter", "TransformersOptions"]

_INSTEAD = {"nf4": "export it with bitsandbytes or onnx"}
_DEQUANTIZE = "set dequantize: true, which writes the floats that codes stand for"


class TransformersOptions(CheckpointOptions):
    """Options of the transformers format.

    Attributes:
        dequantize: write codes as the floats that they stand for, in float32, which holds them
            exactly: the model as it was compressed, without its small size.
    """

    dequantize: bool = False

    @model_validator(mode="after")
    def _exact(self) -> TransformersOptions:
        if self.dequantize and self.dtype not in (None, "float32"):
            raise ValueError(
                f"dtype {self.dtype} would round what codes stand for: with dequantize, leave "
                "dtype out"
            )
        return self


class TransformersExporter(CheckpointExporter[TransformersOptions]):
    """Writes a store's floating-point layers as a checkpoint that transformers loads.

    Codes are refused, or become floats: see `TransformersOptions`. With factors or corrections it
    needs `trust_remote_code=True`, which runs the modelling file beside the weights; without any
    it is an ordinary checkpoint of the source's architecture.
    """

    name: ClassVar[str] = "transformers"
    options_model: ClassVar[type[BaseModel]] = TransformersOptions
    measured = TORCH_BOUNDS

    def __init__(self, options: BaseModel | None = None) -> None:
        super().__init__(options)
        if self.options.dequantize:
            self.float_type = "float32"

    def can_express(self, plan: Plan) -> list[Refusal]:
        """Every layer that is quantized: this format holds floating point alone."""
        if self.options.dequantize:
            return []
        return [
            Refusal(
                layer.name,
                f"the transformers format holds floating-point matrices, not {spec.bits}-bit "
                f"codes of {spec.method}",
                f"{_instead(layer, spec)}, or {_DEQUANTIZE}",
            )
            for layer in plan
            if (spec := next(filter(None, layer.quantization.values()), None)) is not None
        ]

    def stored_bytes(self, layer: LayerPlan) -> int:
        """Bytes of the layer's float matrices, without bias."""
        if self.options.dequantize:
            return layer.parameters * FLOAT_BYTES["float32"]
        return float_bytes(layer, self.float_type)

    def format_of(self, plan: Plan, source: SourceModel, float_type: FloatType) -> CheckpointFormat:
        """See `CheckpointExporter`."""
        from asvd_q_exporters._checkpoint import CheckpointFormat

        return CheckpointFormat(as_source=True)

    def open(self, folder: Path) -> TorchRunner:
        """The checkpoint in transformers, on the CPU.

        Raises:
            ArtefactError: the folder is no checkpoint, or is damaged.
        """
        with quiet():
            from asvd_q_exporters.transformers.runner import open_runner

        return open_runner(folder, self.options.compute_dtype)

    def usage(self, folder: Path) -> Usage:
        """See `asvd_q.usage.DescribedExporter`."""
        from asvd_q_exporters._loading import loads_with

        return Usage(loads_with(folder), "transformers")

    def read(self, folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
        """The matrices in the weight files, read with numpy alone.

        Raises:
            ArtefactError: a file is damaged, or a matrix is missing.
        """
        from asvd_q_exporters.transformers.unpack import read_layers

        yield from read_layers(folder)


def _instead(layer: LayerPlan, spec: QuantSpec) -> str:
    if layer.role == "embedding":
        return "leave it in floating point"
    if layer.form == "correction":
        return "export it with compressed-tensors or onnx"
    return _INSTEAD.get(spec.method, "export it with gptq or onnx")
