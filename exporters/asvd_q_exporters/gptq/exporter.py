"""The GPTQ exporter. Heavy modules are imported where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel

from asvd_q.artefact import Refusal
from asvd_q.usage import Usage
from asvd_q_exporters._exporter import CheckpointExporter, require_packages
from asvd_q_exporters._options import CheckpointOptions
from asvd_q_exporters._runner import quiet
from asvd_q_exporters.gptq.layout import stored_bytes
from asvd_q_exporters.gptq.notes import notes as notes_of
from asvd_q_exporters.gptq.refusals import refusals as refusals_of

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.evaluation.torch_runner import TorchRunner
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, LayerPlan, Plan, Slot
    from asvd_q_exporters._checkpoint import CheckpointFormat

__all__ = ["GptqExporter", "GptqOptions"]


_MIXED_INSTEAD = (
    "use one setting for every layer, give the export `loader: gptqmodel`, or export it with onnx "
    "or compressed-tensors"
)
_DERIVED_INSTEAD = "decompose it, give the export `loader: gptqmodel`, or export it with onnx"


class GptqOptions(CheckpointOptions):
    """Options of the GPTQ format.

    Attributes:
        loader: for which the checkpoint is made. transformers, with which most others agree,
            applies one width and group size to all layers. GPTQModel's own loader lets layers
            differ; where they do, transformers cannot load it.
    """

    loader: Literal["transformers", "gptqmodel"] = "transformers"


class GptqExporter(CheckpointExporter[GptqOptions]):
    """Writes a store's codes as a GPTQ-format checkpoint.

    transformers loads it with optimum and gptqmodel installed, without this package. With
    factors it needs `trust_remote_code=True`, which runs the modelling file beside the weights;
    so does an architecture that initialises layers by their weights, such as GPT-2. Any other
    without factors is an ordinary GPTQ checkpoint of the source's architecture.

    GPTQModel's own loader takes it too, with factors once `asvd_q.integrations.gptqmodel` has
    been imported.

    Symmetric codes are written in the first version of the format, which every loader reads.
    Asymmetric ones are written as `gptq_v2`: the first version cannot hold a zero point of 0.
    """

    name: ClassVar[str] = "gptq"
    options_model: ClassVar[type[BaseModel]] = GptqOptions

    def can_express(self, plan: Plan) -> list[Refusal]:
        """Methods without integer codes, sizes that do not fill words, what the loader lacks."""
        return refusals_of(
            plan, mixed=self._mixes, instead=_MIXED_INSTEAD, of_classes=_DERIVED_INSTEAD
        )

    def notes(self, plan: Plan) -> list[str]:
        """Loaders that cannot read or misread it, and layers for slow kernels alone."""
        return notes_of(plan)

    def stored_bytes(self, layer: LayerPlan) -> int:
        """Bytes of the layer's tensors: packed codes, zero points, scales, g_idx, floats."""
        return stored_bytes(layer, self.float_type)

    def format_of(self, plan: Plan, source: SourceModel, float_type: FloatType) -> CheckpointFormat:
        """See `CheckpointExporter`."""
        from asvd_q_exporters.gptq.format import gptq_format

        return gptq_format(plan, source, for_transformers=not self._mixes)

    def open(self, folder: Path) -> TorchRunner:
        """The checkpoint in its loader with gptqmodel's portable kernel, on the CPU.

        Raises:
            MissingExtraError: gptqmodel is not installed.
            ArtefactError: the folder is no checkpoint, or is damaged.
        """
        require_packages("gptq", "run a GPTQ-format checkpoint", "gptqmodel")
        with quiet():
            from asvd_q_exporters.gptq import runner

        make = runner.open_in_gptqmodel if self._mixes else runner.open_runner
        return make(folder, self.options.compute_dtype)

    def usage(self, folder: Path) -> Usage:
        """See `asvd_q.usage.DescribedExporter`."""
        from asvd_q_exporters._loading import has_tokenizer, loads_with, loads_with_gptqmodel

        snippets = () if self._mixes else loads_with(folder, "optimum", "gptqmodel")
        if self._mixes or has_tokenizer(folder):
            snippets = (*snippets, loads_with_gptqmodel(folder))
        return Usage(snippets, "transformers", ("gptq",))

    def read(self, folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
        """The matrices in the weight files, unpacked with numpy alone.

        Raises:
            ArtefactError: a file is damaged, or a matrix is missing.
        """
        from asvd_q_exporters.gptq.unpack import read_layers

        yield from read_layers(folder)

    @property
    def _mixes(self) -> bool:
        return self.options.loader == "gptqmodel"
