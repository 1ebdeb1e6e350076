"""The PEFT exporter. Heavy modules are imported where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel

from asvd_q.artefact import Refusal
from asvd_q.usage import Usage
from asvd_q_exporters._exporter import TypedExporter, require_packages
from asvd_q_exporters._options import CheckpointOptions
from asvd_q_exporters._runner import quiet
from asvd_q_exporters.gptq.layout import stored_bytes
from asvd_q_exporters.gptq.notes import notes as notes_of
from asvd_q_exporters.peft.base import codes_alone
from asvd_q_exporters.peft.refusals import refusals as refusals_of

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.artefact import ArtefactBytes
    from asvd_q.evaluation.torch_runner import TorchRunner
    from asvd_q.models import SourceModel
    from asvd_q.plan import LayerPlan, Plan, Slot
    from asvd_q.store import Store

__all__ = ["PeftExporter", "PeftOptions"]


class PeftOptions(CheckpointOptions):
    """Options of the PEFT format."""


class PeftExporter(TypedExporter[PeftOptions]):
    """Writes a store's codes as a GPTQ-format checkpoint, its corrections as a LoRA adapter.

    `base/` is an ordinary GPTQ checkpoint, `adapter/` what `PeftModel.from_pretrained` puts on
    it. Neither needs this package, or code from a folder.
    """

    name: ClassVar[str] = "peft"
    options_model: ClassVar[type[BaseModel]] = PeftOptions

    def can_express(self, plan: Plan) -> list[Refusal]:
        """Factors, corrections in codes, and what a GPTQ-format checkpoint cannot hold."""
        return refusals_of(plan)

    def notes(self, plan: Plan) -> list[str]:
        """Loaders that misread the base, and layers of it for slow kernels alone."""
        return notes_of(codes_alone(layer) for layer in plan)

    def stored_bytes(self, layer: LayerPlan) -> int:
        """Bytes of the layer's tensors in both folders.

        A B that several corrections have in common is written out in each of them.
        """
        return stored_bytes(layer, self.float_type)

    def artefact_bytes(self, plan: Plan, source: SourceModel) -> ArtefactBytes:
        """See `asvd_q.artefact.SizedExporter`."""
        from asvd_q_exporters.peft.write import artefact_bytes

        return artefact_bytes(plan, source, self.float_type or plan.float_type)

    def write(self, store: Store, folder: Path) -> None:
        """Write `base/`, a checkpoint with its tokenizer, and `adapter/`.

        Raises:
            ExportError: naming the layer that the format cannot hold.
        """
        from asvd_q_exporters.peft.write import write_artefact

        self.require(store.finished_plan)
        write_artefact(store, folder, self.float_type or store.float_type)

    def open(self, folder: Path) -> TorchRunner:
        """Base and adapter in transformers and PEFT, with gptqmodel's portable kernel, on the CPU.

        Raises:
            MissingExtraError: gptqmodel or peft is not installed.
            ArtefactError: the folder holds no checkpoint or no adapter, or a damaged one.
        """
        require_packages("peft", "run a GPTQ checkpoint with its adapter", "gptqmodel", "peft")
        with quiet():
            from asvd_q_exporters.peft.runner import open_runner

        return open_runner(folder, self.options.compute_dtype)

    def usage(self, folder: Path) -> Usage:
        """See `asvd_q.usage.DescribedExporter`."""
        from asvd_q_exporters.peft.loading import usage

        return usage(folder)

    def read(self, folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
        """The matrices in both folders' weight files, unpacked with numpy alone.

        Raises:
            ArtefactError: a file is damaged, a matrix is missing, or PEFT would scale one.
        """
        from asvd_q_exporters.peft.unpack import read_layers

        yield from read_layers(folder)
