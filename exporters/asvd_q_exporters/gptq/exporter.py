"""The GPTQ exporter. Heavy modules are imported where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel

from asvd_q.artefact import ParityBounds, Refusal
from asvd_q.errors import MissingExtraError
from asvd_q_exporters._options import (
    KERNEL_BOUNDS,
    CheckpointOptions,
    coarsest,
)
from asvd_q_exporters._runner import quiet
from asvd_q_exporters.gptq.layout import stored_bytes
from asvd_q_exporters.gptq.refusals import refusals as refusals_of

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.artefact import ArtefactBytes
    from asvd_q.evaluation.torch_runner import TorchRunner
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, LayerPlan, Plan, Slot
    from asvd_q.store import Store

__all__ = ["GptqExporter", "GptqOptions"]


class GptqOptions(CheckpointOptions):
    """Options of the GPTQ format."""


class GptqExporter:
    """Writes a store's codes as a GPTQ-format checkpoint.

    transformers loads it with optimum and gptqmodel installed, without this package. With
    factors it needs `trust_remote_code=True`, which runs the modelling file beside the weights;
    without any it is an ordinary GPTQ checkpoint of the source's architecture.

    Symmetric codes are written in the first version of the format, which every loader reads.
    Asymmetric ones are written as `gptq_v2`: the first version cannot hold a zero point of 0.
    Loaders that take every checkpoint for the first version (ONNX Runtime GenAI's builder is
    one) misread those.
    """

    name: ClassVar[str] = "gptq"
    options_model: ClassVar[type[BaseModel]] = GptqOptions

    def __init__(self, options: BaseModel | None = None) -> None:
        chosen = GptqOptions() if options is None else options
        if not isinstance(chosen, GptqOptions):
            raise TypeError(f"options of gptq are GptqOptions, not {type(chosen)}")
        self.options = chosen
        self.float_type: FloatType | None = chosen.dtype
        self.bounds: ParityBounds = KERNEL_BOUNDS[coarsest(chosen.dtype, chosen.compute_dtype)]

    def can_express(self, plan: Plan) -> list[Refusal]:
        """Methods without integer codes, sizes that do not fill words, settings that differ."""
        return refusals_of(plan)

    def stored_bytes(self, layer: LayerPlan) -> int:
        """Bytes of the layer's tensors: packed codes, zero points, scales, g_idx, floats."""
        return stored_bytes(layer, self.float_type)

    def artefact_bytes(self, plan: Plan, source: SourceModel) -> ArtefactBytes:
        """See `asvd_q.artefact.SizedExporter`."""
        from asvd_q_exporters.gptq.write import artefact_bytes

        return artefact_bytes(plan, source, self.float_type)

    def write(self, store: Store, folder: Path) -> None:
        """Write weights, both configurations, tokenizer and, with factors, the modelling file.

        Raises:
            ExportError: naming the layer that the format cannot hold.
        """
        from asvd_q_exporters.gptq.write import write_artefact

        refusals = self.can_express(store.finished_plan)
        write_artefact(store, folder, refusals, self.float_type)

    def open(self, folder: Path) -> TorchRunner:
        """The checkpoint in transformers with gptqmodel's portable kernel, on the CPU.

        Raises:
            MissingExtraError: gptqmodel is not installed.
            ArtefactError: the folder is no checkpoint, or is damaged.
        """
        if find_spec("gptqmodel") is None:
            raise MissingExtraError("gptqmodel", "gptq", "run a GPTQ-format checkpoint")
        with quiet():
            from asvd_q_exporters.gptq.runner import open_runner

        return open_runner(folder, self.options.compute_dtype)

    def read(self, folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
        """The matrices in the weight files, unpacked with numpy alone.

        Raises:
            ArtefactError: a file is damaged, or a matrix is missing.
        """
        from asvd_q_exporters.gptq.unpack import read_layers

        yield from read_layers(folder)
