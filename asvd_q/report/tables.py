"""Tables as data, and how a terminal or a pipe gets to see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from asvd_q.plan import LayerPlan, QuantSpec, Slot
from asvd_q.records import LayerRecord
from asvd_q.report.run import ArtefactRecord, RunRecord

__all__ = [
    "Table",
    "artefact_table",
    "layer_table",
    "options_text",
    "plan_table",
    "print_table",
    "quality_table",
    "size",
]


@dataclass(frozen=True)
class Table:
    """A title, column heads and rows of finished text; a column is right-aligned if it counts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def print_table(console: Console, table: Table) -> None:
    """A Rich table on a terminal, aligned plain lines elsewhere."""
    if console.is_terminal:
        rich = RichTable(title=table.title, title_justify="left", header_style="bold")
        for position, column in enumerate(table.columns):
            rich.add_column(column, justify="left" if position == 0 else "right")
        for row in table.rows:
            rich.add_row(*row)
        console.print(rich)
        return
    lines = [table.columns, *table.rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
    console.print(table.title, markup=False, highlight=False, soft_wrap=True)
    for line in lines:
        first = line[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        console.print("  ".join([first, *rest]), markup=False, highlight=False, soft_wrap=True)


def size(count: int) -> str:
    """Bytes for people: "3.42 MiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def options_text(options: Mapping[str, Any]) -> str:
    """Options of a format as a recipe writes them: "dtype: float16, external_data: true"."""
    words = (one if isinstance(one, str) else json.dumps(one) for one in options.values())
    return ", ".join(f"{name}: {word}" for name, word in zip(options, words, strict=True)) or "–"


def layer_table(records: Sequence[LayerRecord], title: str) -> Table:
    """One row per layer of a finished store or artefact."""
    rows = [
        (
            record.name,
            _shape(record.shape),
            record.form,
            str(record.rank or "–"),
            f"{record.kept_ratio:.3f}",
            _per_slot(record.quantization, lambda spec: str(spec.bits)),
            _per_slot(record.quantization, _group),
            str(record.bytes_after),
            f"{record.bytes_after / record.bytes_before:.3f}",
            _error(record),
        )
        for record in records
    ]
    columns = ("layer", "out × in", "form", "rank", "kept", "bits", "group", "bytes", "ratio")
    return Table(title, (*columns, "error"), tuple(rows))


def plan_table(layers: Sequence[LayerPlan], title: str) -> Table:
    """One row per layer of a plan; the last column says why a layer keeps more than others."""
    rows = [
        (
            layer.name,
            _shape(layer.shape),
            layer.form,
            str(layer.rank or "–"),
            f"{layer.parameters / (layer.shape[0] * layer.shape[1]):.3f}",
            _per_slot(layer.quantization, lambda spec: str(spec.bits)),
            _per_slot(layer.quantization, _group),
            str(layer.predicted_bytes),
            layer.reason or "",
        )
        for layer in layers
    ]
    columns = ("layer", "out × in", "form", "rank", "kept", "bits", "group", "bytes", "reason")
    return Table(title, columns, tuple(rows))


def quality_table(record: RunRecord) -> Table:
    """Dense and compressed perplexity, corpus by corpus."""
    rows = []
    for one in record.assessed:
        quality, before = one.quality, one.dense
        rows.append(
            (
                f"{quality.corpus} ({quality.split})",
                f"{quality.windows} × {quality.window}",
                f"{before.perplexity:.3f}" if before else "–",
                f"{quality.perplexity:.3f}",
                f"{one.change:+.2%}" if one.change is not None else "–",
                f"{quality.kl:.4f}" if quality.kl is not None else "–",
                f"{quality.agreement:.2%}" if quality.agreement is not None else "–",
            )
        )
    columns = ("corpus", "tokens", "dense", "compressed", "change", "KL", "same arg max")
    return Table("Perplexity", columns, tuple(rows))


def artefact_table(record: RunRecord) -> Table:
    """Every artefact with its size and how close its runtime comes to the store."""
    rows = [
        (
            artefact.name,
            artefact.format,
            size(artefact.bytes),
            f"{size(artefact.predicted.folder)} ({_off(artefact)})",
            artefact.proof.status,
            artefact.proof.runtime or artefact.proof.detail or "–",
            _number(artefact.proof.relative_error),
            _number(artefact.proof.kl),
            f"{artefact.proof.agreement:.2%}" if artefact.proof.agreement is not None else "–",
        )
        for artefact in record.artefacts
    ]
    columns = ("artefact", "format", "size", "predicted", "proof", "runtime", "logit error", "KL")
    return Table("Artefacts", (*columns, "same arg max"), tuple(rows))


def _off(artefact: ArtefactRecord) -> str:
    """How far the prediction is from what lies on the disk."""
    return f"{artefact.predicted.folder / artefact.bytes - 1:+.2%}"


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"


def _per_slot(
    quantization: Mapping[Slot, QuantSpec | None], describe: Callable[[QuantSpec], str]
) -> str:
    """One word when all matrices of a layer agree, else one for each, in the order applied."""
    words = ["–" if spec is None else describe(spec) for spec in quantization.values()]
    return words[0] if len(set(words)) == 1 else " / ".join(words)


def _group(spec: QuantSpec) -> str:
    return "channel" if spec.group_size == -1 else str(spec.group_size)


def _error(record: LayerRecord) -> str:
    if not record.errors:
        return "–"
    value = list(record.errors.values())[-1]
    return f"{value:.4f}" + ("" if record.error_basis == "output" else " (weights)")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"
