"""What each exporter would make of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from asvd_q.artefact import Exporter
from asvd_q.errors import AsvdQError, ExportError
from asvd_q.exporter_registry import available_exporters
from asvd_q.exporting import advice, make_exporter, refusal_of_model
from asvd_q.records import Footprint
from asvd_q.report.tables import Table, size
from asvd_q.sizes import footprint, predict_files

if TYPE_CHECKING:
    from asvd_q.preparation import Prepared

__all__ = ["ExportOutlook", "export_outlooks", "outlook_remarks", "outlook_table"]


class ExportOutlook(BaseModel):
    """Whether an exporter can take a plan, and what that takes on disk.

    Attributes:
        exporter: its name.
        artefact: the recipe's name for it; None where the recipe does not ask for it, and the
            exporter has its default options.
        bytes: of the layers' matrices.
        predicted: of the files.
        refusal: why not; then there are no bytes.
        notes: what whoever loads the artefact should know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exporter: str
    artefact: str | None
    bytes: int | None = None
    predicted: Footprint | None = None
    refusal: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The artefact's name; in brackets the format's, where the recipe does not ask for it."""
        return self.artefact or f"({self.exporter})"


def export_outlooks(prepared: Prepared) -> list[ExportOutlook]:
    """The recipe's exports first, then every other installed exporter."""
    return list(_outlooks(prepared))


def outlook_table(outlooks: list[ExportOutlook]) -> Table:
    """One row per artefact or exporter."""
    rows = tuple(
        (
            one.label,
            one.exporter,
            "no" if one.refusal is not None else "yes",
            "–" if one.bytes is None else size(one.bytes),
            "–" if one.predicted is None else size(one.predicted.weights),
            "–" if one.predicted is None else size(one.predicted.folder),
        )
        for one in outlooks
    )
    columns = ("artefact", "format", "can hold it", "layers", "weight files", "folder")
    return Table("Exports, and in brackets other formats, in bytes on disk", columns, rows)


def outlook_remarks(outlooks: list[ExportOutlook]) -> list[str]:
    """Why formats cannot hold the plan, and what to know of the artefacts that were asked for."""
    refused = [f"{one.label}: {one.refusal}" for one in outlooks if one.refusal is not None]
    wanted = [one for one in outlooks if one.artefact is not None]
    return [*refused, *(f"{one.label}: {note}" for one in wanted for note in one.notes)]


def _outlooks(prepared: Prepared) -> Iterator[ExportOutlook]:
    wanted = {section.format for section, _ in prepared.exports}
    for section, exporter in prepared.exports:
        yield _outlook(prepared, exporter, section.name)
    for name in available_exporters():
        if name in wanted:
            continue
        try:
            exporter = make_exporter(name, {}, where="options", file=name)
        except AsvdQError as error:  # of a package that is not in use, or wants options
            yield ExportOutlook(exporter=name, artefact=None, refusal=str(error))
        else:
            yield _outlook(prepared, exporter, None)


def _outlook(prepared: Prepared, exporter: Exporter, artefact: str | None) -> ExportOutlook:
    against = refusal_of_model(exporter, prepared.source)
    refused = exporter.can_express(prepared.plan) if against is None else [against]
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        return ExportOutlook(
            exporter=exporter.name, artefact=artefact, refusal=f"{refused[0]}{more}"
        )
    try:
        files = predict_files(exporter, prepared.plan, prepared.source)
    except ExportError as error:
        return ExportOutlook(exporter=exporter.name, artefact=artefact, refusal=str(error))
    return ExportOutlook(
        exporter=exporter.name,
        artefact=artefact,
        bytes=sum(exporter.stored_bytes(layer) for layer in prepared.plan),
        predicted=footprint(files),
        notes=tuple(advice(exporter, prepared.plan)),
    )
