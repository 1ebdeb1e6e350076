"""How many bytes an artefact will take, from a plan and the headers of the source's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q import __version__
from asvd_q.artefact import METADATA_FILE, ArtefactBytes, Exporter, SizedExporter
from asvd_q.budget.counting import Count
from asvd_q.files import folder_bytes
from asvd_q.plan import FLOAT_BYTES, LayerPlan, Plan
from asvd_q.records import ArtefactMetadata, Footprint, LayerRecord, SourceIdentity

if TYPE_CHECKING:
    from asvd_q.models import SourceModel

__all__ = [
    "expected_metadata",
    "footprint",
    "measured_footprint",
    "metadata_text",
    "predict_files",
]

_HASH = "0" * 64
_ERROR = 0.012345678901234567
"""An error with as many digits as most have."""


def predict_files(exporter: Exporter, plan: Plan, source: SourceModel) -> ArtefactBytes:
    """Every file of an artefact with its bytes, the metadata file included.

    Exact, but for the metadata, whose errors and notes are not known yet, and for what the
    exporter says of its own prediction. Of an exporter that makes none, the matrices are added
    up, and names of its weight files are not known.

    Raises:
        ExportError: naming the layer that the format cannot hold.
    """
    options = exporter.options.model_dump(mode="json")
    metadata = metadata_text(expected_metadata(plan, source, exporter.name, options))
    if isinstance(exporter, SizedExporter):
        found = exporter.artefact_bytes(plan, source)
    else:
        layers = sum(exporter.stored_bytes(layer) for layer in plan)
        rest = Count(plan.float_type, exporter).of_rest(plan)
        companions = {file.name: file.stat().st_size for file in source.companion_files()}
        found = ArtefactBytes({"": layers + rest}, companions)
    return ArtefactBytes(found.weights, {**found.others, METADATA_FILE: len(metadata.encode())})


def measured_footprint(folder: Path, predicted: ArtefactBytes) -> Footprint:
    """What a written artefact takes; weights are all files that were not said to hold none.

    Taken before the artefact gets its model card, which is in no footprint: it tells them, and
    what it tells of quality and proof is not known when they are predicted.
    """
    others = (folder / name for name in predicted.others)
    found = folder_bytes(folder)
    return Footprint(
        weights=found - sum(path.stat().st_size for path in others if path.is_file()), folder=found
    )


def footprint(files: ArtefactBytes) -> Footprint:
    """Predicted files in two numbers."""
    weights = sum(files.weights.values())
    return Footprint(weights=weights, folder=weights + sum(files.others.values()))


def metadata_text(metadata: ArtefactMetadata) -> str:
    """Content of the metadata file."""
    return metadata.model_dump_json(indent=1) + "\n"


def expected_metadata(
    plan: Plan, source: SourceModel, format: str, options: dict[str, object]
) -> ArtefactMetadata:
    """What `Store.metadata` will say, as far as its length goes: hashes and errors are made up."""
    return ArtefactMetadata.model_validate(
        {
            "asvd_q": __version__,
            "format": format,
            "options": options,
            "source": SourceIdentity(
                name=source.name,
                model_type=str(source.config.model_type),
                weights_sha256=_HASH,
                revision=source.revision,
            ),
            "float_type": plan.float_type,
            "store_key": _HASH,
            "truncation_ranks": plan.ranks,
            "correction_ranks": plan.correction_ranks,
            "layers": tuple(_record(layer, plan) for layer in plan),
        }
    )


def _record(layer: LayerPlan, plan: Plan) -> LayerRecord:
    stages = ["decompose"] if layer.form == "factors" else []
    if any(layer.quantization.values()):
        stages.append("quantize")
    return LayerRecord(
        **layer.model_dump(exclude={"predicted_bytes"}),
        bytes_before=layer.shape[0] * layer.shape[1] * FLOAT_BYTES[plan.float_type],
        bytes_after=layer.predicted_bytes,
        errors=dict.fromkeys(stages, _ERROR),
    )
