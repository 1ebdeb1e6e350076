"""Everything a report says, as plain data: from a run's record and the files beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asvd_q.compressing import RECIPE_FILE
from asvd_q.compression.spectra import read_spectra
from asvd_q.report.page.charts import Panel, panels
from asvd_q.report.page.evidence import search_evidence
from asvd_q.report.page.grid import Grid
from asvd_q.report.page.headline import Headline, headlines, summary
from asvd_q.report.page.maps import HeatMap, heat_maps
from asvd_q.report.page.sizes import PartSize, part_sizes
from asvd_q.report.page.tables import (
    artefact_grid,
    corpus_grid,
    layer_grid,
    quality_grid,
    stage_grid,
    task_grid,
    version_grid,
)
from asvd_q.report.run import RunRecord

__all__ = ["ReportContent", "report_content"]


@dataclass(frozen=True)
class ReportContent:
    """A report before it is written in one language or another.

    Attributes:
        name, model: of the recipe, and of what was compressed.
        summary: one sentence.
        warnings: of the run; `notes` are those of single layers.
        quality: what was measured of the model, a table each; empty where nothing was.
        artefacts, corpora: None where the run has none.
        sizes: bytes by part of the model.
        search: what the run's search had to say; empty where there was none.
        panels: spectra by kind of layer.
        facts: what else the result depends on, (name, value).
        recipe: with every default, as YAML; empty where the run folder has lost it.
    """

    name: str
    model: str
    summary: str
    headlines: tuple[Headline, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    quality: tuple[Grid, ...]
    artefacts: Grid | None
    sizes: tuple[PartSize, ...]
    search: tuple[str, ...]
    maps: tuple[HeatMap, ...]
    panels: tuple[Panel, ...]
    layers: Grid
    facts: tuple[tuple[str, str], ...]
    stages: Grid
    versions: Grid
    corpora: Grid | None
    recipe: str


def report_content(folder: Path, record: RunRecord) -> ReportContent:
    """Put a report together; reads the folder and changes nothing.

    Args:
        folder: of the run.
        record: of the run.

    Raises:
        ArtefactError: what a search left there is damaged.
    """
    spectra = read_spectra(folder, record.store_key)
    found = search_evidence(folder, record)
    predicted = {} if found is None else found.losses
    recipe = folder / RECIPE_FILE
    return ReportContent(
        name=record.name,
        model=record.source.name,
        summary=summary(record),
        headlines=headlines(record),
        warnings=record.warnings,
        notes=record.layer_notes,
        quality=tuple(
            grid for grid in (quality_grid(record), task_grid(record)) if grid is not None
        ),
        artefacts=artefact_grid(record),
        sizes=part_sizes(record),
        search=() if found is None else found.remarks,
        maps=heat_maps(record, predicted),
        panels=panels(record.layers, spectra),
        layers=layer_grid(record, spectra, predicted),
        facts=_facts(record),
        stages=stage_grid(record),
        versions=version_grid(record),
        corpora=corpus_grid(record),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
    )


def _facts(record: RunRecord) -> tuple[tuple[str, str], ...]:
    source = record.source
    revision = (("revision", source.revision),) if source.revision else ()
    return (
        ("model", f"{source.name} ({source.model_type})"),
        *revision,
        ("SHA-256 of its weights", source.weights_sha256),
        ("store", record.store_key),
        ("seed", str(record.seed)),
        ("device", record.device),
    )
