"""The compressed-tensors exporter. Heavy modules are imported where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel

from asvd_q.artefact import Refusal
from asvd_q.usage import Usage
from asvd_q_exporters._exporter import CheckpointExporter, require_packages
from asvd_q_exporters._options import TORCH_BOUNDS, CheckpointOptions
from asvd_q_exporters._runner import quiet
from asvd_q_exporters.compressed_tensors.layout import stored_bytes
from asvd_q_exporters.compressed_tensors.refusals import refusals as refusals_of

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.evaluation.torch_runner import TorchRunner
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, LayerPlan, Plan, Slot
    from asvd_q_exporters._checkpoint import CheckpointFormat

__all__ = ["CompressedTensorsExporter", "CompressedTensorsOptions"]


class CompressedTensorsOptions(CheckpointOptions):
    """Options of the compressed-tensors format.

    Scales are written in float16, and loaders cast them to the type that they compute in. float32
    and float16 keep them as they are; bfloat16 rounds them, as it does the weights they make. That
    is little beside what computing in bfloat16 does.
    """


class CompressedTensorsExporter(CheckpointExporter[CompressedTensorsOptions]):
    """Writes a store's codes as a pack-quantized checkpoint, every layer with its own settings.

    transformers loads it with compressed-tensors installed, without this package. With factors
    or corrections it needs `trust_remote_code=True`, which runs the modelling file beside the
    weights; without any it is an ordinary checkpoint of the source's architecture.

    transformers makes floats of all codes at the first call: the file is small, the model in
    memory is not. Its option `dequantize=True` does so while it loads, but reads every layer with
    the settings of the first group, which is wrong where they differ.
    """

    name: ClassVar[str] = "compressed-tensors"
    options_model: ClassVar[type[BaseModel]] = CompressedTensorsOptions
    measured = TORCH_BOUNDS

    def can_express(self, plan: Plan) -> list[Refusal]:
        """Methods without integer codes, zero points, reordered groups, layers of other classes."""
        return refusals_of(plan)

    def stored_bytes(self, layer: LayerPlan) -> int:
        """Bytes of the layer's tensors: packed codes, scales, shapes, floats.

        A B that several corrections have in common is written out in each of them.
        """
        return stored_bytes(layer, self.float_type)

    def format_of(self, plan: Plan, source: SourceModel, float_type: FloatType) -> CheckpointFormat:
        """See `CheckpointExporter`."""
        from asvd_q_exporters.compressed_tensors.format import packed_format

        return packed_format(plan, source)

    def open(self, folder: Path) -> TorchRunner:
        """The checkpoint in transformers with compressed-tensors, on the CPU.

        Raises:
            MissingExtraError: compressed-tensors is not installed.
            ArtefactError: the folder is no checkpoint, or is damaged.
        """
        package = "compressed-tensors"
        require_packages(package, f"run a {package} checkpoint", package)
        with quiet():
            from asvd_q_exporters.compressed_tensors.runner import open_runner

        return open_runner(folder, self.options.compute_dtype)

    def usage(self, folder: Path) -> Usage:
        """See `asvd_q.usage.DescribedExporter`."""
        from asvd_q_exporters._loading import loads_with

        package = "compressed-tensors"
        return Usage(loads_with(folder, package), "transformers", (package,))

    def read(self, folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
        """The matrices in the weight files, unpacked with numpy alone.

        Raises:
            ArtefactError: a file is damaged, or a matrix is missing.
        """
        from asvd_q_exporters.compressed_tensors.unpack import read_layers

        yield from read_layers(folder)
