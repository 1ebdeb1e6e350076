"""The bitsandbytes exporter. Heavy modules are imported where they are used."""

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
from asvd_q_exporters.bitsandbytes.layout import stored_bytes
from asvd_q_exporters.bitsandbytes.refusals import refusals as refusals_of

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.evaluation.torch_runner import TorchRunner
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, LayerPlan, Plan, Slot
    from asvd_q_exporters._checkpoint import CheckpointFormat

__all__ = ["BitsAndBytesExporter", "BitsAndBytesOptions"]


class BitsAndBytesOptions(CheckpointOptions):
    """Options of the bitsandbytes format."""


class BitsAndBytesExporter(CheckpointExporter[BitsAndBytesOptions]):
    """Writes a store's NF4 codes as transformers saves a model in 4 bits.

    transformers loads it with bitsandbytes installed, without this package. With factors it
    needs `trust_remote_code=True`, which runs the modelling file beside the weights; without any
    it is an ordinary 4-bit checkpoint of the source's architecture. Block sizes and double
    quantization may differ between matrices, and any of them may stay in floating point.
    """

    name: ClassVar[str] = "bitsandbytes"
    options_model: ClassVar[type[BaseModel]] = BitsAndBytesOptions
    measured = TORCH_BOUNDS

    def can_express(self, plan: Plan) -> list[Refusal]:
        """Methods other than nf4, corrections, and shapes that its kernels for CPUs do not take."""
        return refusals_of(plan)

    def stored_bytes(self, layer: LayerPlan) -> int:
        """Bytes of the layer's tensors: codes, scales, tables, JSON, floats."""
        return stored_bytes(layer, self.float_type)

    def format_of(self, plan: Plan, source: SourceModel, float_type: FloatType) -> CheckpointFormat:
        """See `CheckpointExporter`."""
        from asvd_q_exporters.bitsandbytes.format import nf4_format

        return nf4_format(plan, source, float_type)

    def open(self, folder: Path) -> TorchRunner:
        """The checkpoint in transformers with bitsandbytes' portable kernels, on the CPU.

        Raises:
            MissingExtraError: bitsandbytes is not installed.
            ArtefactError: the folder is no checkpoint, or is damaged.
        """
        require_packages("nf4", "run a bitsandbytes checkpoint", "bitsandbytes")
        with quiet():
            from asvd_q_exporters.bitsandbytes.runner import open_runner

        return open_runner(folder, self.options.compute_dtype)

    def usage(self, folder: Path) -> Usage:
        """See `asvd_q.usage.DescribedExporter`."""
        from asvd_q_exporters._loading import loads_with

        return Usage(loads_with(folder, "bitsandbytes"), "transformers", ("bitsandbytes",))

    def read(self, folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
        """The matrices in the weight files, unpacked with numpy alone.

        Raises:
            ArtefactError: a file is damaged, or a matrix is missing.
        """
        from asvd_q_exporters.bitsandbytes.unpack import read_layers

        yield from read_layers(folder)
