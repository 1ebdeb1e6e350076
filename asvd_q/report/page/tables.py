"""Quality, parity, layers and how the run was made, as grids."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from asvd_q.plan import QuantSpec, Slot
from asvd_q.records import LayerRecord, LayerSpectrum
from asvd_q.report.page.grid import NOTHING, Cell, Column, Grid, number, share, text
from asvd_q.report.run import ArtefactRecord, RunRecord
from asvd_q.report.tables import options_text, size
from asvd_q.report.tasks import task_table

__all__ = [
    "artefact_grid",
    "corpus_grid",
    "layer_grid",
    "quality_grid",
    "stage_grid",
    "task_grid",
    "version_grid",
]

_STAGES = ("decompose", "quantize")
"""In the order in which a layer goes through them."""


def quality_grid(record: RunRecord) -> Grid | None:
    """Dense beside compressed, corpus by corpus; None where nothing was evaluated."""
    if not record.quality:
        return None
    rows = []
    for assessed in record.assessed:
        one, before = assessed.quality, assessed.dense
        rows.append(
            (
                text(one.corpus),
                number(None if before is None else before.perplexity, ".3f"),
                number(one.perplexity, ".3f"),
                number(assessed.change, "+.2%"),
                number(one.kl, ".5f"),
                share(one.agreement),
                text(one.split),
                text(one.protocol),
                text(f"{one.windows} × {one.window}", one.windows * one.window),
                number(one.tokens, ","),
                text(one.runtime),
            )
        )
    columns = (
        Column("corpus", numeric=False),
        Column("dense", "perplexity of the dense model"),
        Column("compressed", "perplexity of the compressed model"),
        Column("change", "of the perplexity"),
        Column("KL", "mean divergence from the dense model, nats per token"),
        Column("same token", "positions with the dense model's likeliest token"),
        Column("split", numeric=False),
        Column("protocol", "how the text was cut, as the recipe has it", numeric=False),
        Column("windows", "number of windows × tokens in each"),
        Column("tokens", "predicted tokens"),
        Column("runtime", "what computed the logits", numeric=False),
    )
    return Grid("Perplexity", columns, tuple(rows))


def task_grid(record: RunRecord) -> Grid | None:
    """One row per metric of every task, dense beside compressed; None where there was none."""
    if not record.tasks:
        return None
    table = task_table(record.tasks, record.dense_tasks)
    columns = tuple(
        Column(label, numeric=index > 0 and label != "metric")
        for index, label in enumerate(table.columns)
    )
    return Grid(table.title, columns, tuple(tuple(map(text, row)) for row in table.rows))


def artefact_grid(record: RunRecord) -> Grid | None:
    """One column per artefact; None where nothing was exported."""
    if not record.artefacts:
        return None
    lines: tuple[tuple[str, Callable[[ArtefactRecord], Cell]], ...] = (
        ("format", lambda one: text(one.format)),
        ("proof", _status),
        ("weights recovered", lambda one: text(f"{one.proof.layers} layers, bit for bit")),
        ("runtime", lambda one: text(one.proof.runtime or one.proof.detail or "–")),
        ("options", lambda one: text(options_text(one.options))),
        ("tokens compared", lambda one: number(one.proof.tokens, ",")),
        ("of them decoded one by one", lambda one: number(one.proof.decode_steps)),
        ("relative logit error", lambda one: number(one.proof.relative_error, ".2e")),
        ("KL, nats per token", lambda one: number(one.proof.kl, ".2e")),
        ("same likeliest token", lambda one: share(one.proof.agreement)),
        ("size on disk", lambda one: text(size(one.bytes), one.bytes)),
        ("size predicted", _predicted),
        ("weight files", lambda one: text(size(one.weight_bytes), one.weight_bytes)),
        ("folder", lambda one: text(one.folder)),
    )
    rows = tuple((text(label), *(cell(one) for one in record.artefacts)) for label, cell in lines)
    names = (Column(one.name, numeric=False) for one in record.artefacts)
    return Grid("Parity with the store", (Column("", numeric=False), *names), rows)


def layer_grid(
    record: RunRecord,
    spectra: Mapping[str, LayerSpectrum],
    predicted: Mapping[str, float],
) -> Grid:
    """One row per layer.

    Args:
        spectra: of the layers that factors were cut from.
        predicted: loss increase of layers, as a search predicted it; the column is left out
            where there was none.
    """
    found = dict.fromkeys(stage for layer in record.layers for stage in layer.errors)
    stages = sorted(
        found, key=lambda stage: (_STAGES.index(stage) if stage in _STAGES else 9, stage)
    )
    basis = " or ".join(sorted({layer.error_basis for layer in record.layers}))
    optional = {
        "kept energy": bool(spectra),
        "predicted loss": bool(predicted),
        "reason": any(layer.reason for layer in record.layers),
    }
    columns = (
        Column("layer", "in the order of the model", numeric=False),
        Column("out × in", "shape of the weight; sorted by its size"),
        Column("form", numeric=False),
        Column("rank", "of A and B"),
        Column("kept", "parameters after / before"),
        Column("bits", "of the codes of each matrix, in the order applied"),
        Column("group", "weights that share a scale"),
        Column("bytes", "stored, scales included"),
        *(Column(f"error, {stage}", f"relative {basis} error after it") for stage in stages),
        Column("kept energy", "share of Σ σ² up to the rank"),
        Column(
            "predicted loss",
            "increase, nats per token, as the search predicted it; none where a layer stays whole",
        ),
        Column("reason", "why it stayed as it is", numeric=False),
    )
    shown = [index for index, column in enumerate(columns) if optional.get(column.label, True)]
    rows = []
    for index, layer in enumerate(record.layers):
        spectrum = spectra.get(layer.name)
        cells = (
            text(layer.name, index),
            text(f"{layer.shape[0]} × {layer.shape[1]}", layer.shape[0] * layer.shape[1]),
            text(layer.form),
            number(layer.rank),
            number(layer.kept_ratio, ".3f"),
            _per_slot(layer, lambda spec: spec.bits),
            _per_slot(layer, lambda spec: spec.group_size),
            number(layer.bytes_after, ","),
            *(number(layer.errors.get(stage), ".4f") for stage in stages),
            number(None if spectrum is None else spectrum.kept, ".2%"),
            number(predicted.get(layer.name) or None, ".2e"),
            text(layer.reason) if layer.reason else NOTHING,
        )
        rows.append(tuple(cells[column] for column in shown))
    return Grid("Layers", tuple(columns[index] for index in shown), tuple(rows))


def stage_grid(record: RunRecord) -> Grid:
    """Seconds and memory of every stage; one that was gone through again has several rows."""
    rows = [
        (
            text(stage.stage),
            number(stage.seconds, ".1f"),
            text(size(stage.peak_memory_bytes), stage.peak_memory_bytes),
        )
        for stage in record.stages
    ]
    if rows:
        peak = max(stage.peak_memory_bytes for stage in record.stages)
        seconds = sum(stage.seconds for stage in record.stages)
        rows.append((text("all"), number(seconds, ".1f"), text(size(peak), peak)))
    columns = (
        Column("stage", numeric=False),
        Column("seconds"),
        Column("peak memory", "largest resident set of the process"),
    )
    return Grid("Stages", columns, tuple(rows))


def version_grid(record: RunRecord) -> Grid:
    """Everything that had a part in the result."""
    rows = tuple((text(name), text(found)) for name, found in record.versions.items())
    return Grid(
        "Versions", (Column("package", numeric=False), Column("version", numeric=False)), rows
    )


def corpus_grid(record: RunRecord) -> Grid | None:
    """Texts that were read; None where there were none."""
    if not record.corpora:
        return None
    columns = tuple(
        Column(label, numeric=False) for label in ("corpus", "split", "used for", "SHA-256")
    )
    rows = tuple(
        (text(one.corpus), text(one.split), text(one.use), text(one.sha256))
        for one in record.corpora
    )
    return Grid("Texts", columns, rows)


def _status(artefact: ArtefactRecord) -> Cell:
    proven = artefact.proof.status == "proven"
    return text(artefact.proof.status, mark="good" if proven else "bad")


def _predicted(artefact: ArtefactRecord) -> Cell:
    predicted = artefact.predicted.folder
    off = predicted / max(artefact.bytes, 1) - 1
    return text(f"{size(predicted)} ({off:+.2%})", predicted)


def _per_slot(layer: LayerRecord, describe: Callable[[QuantSpec], int]) -> Cell:
    """One word when all matrices of a layer agree, else one for each; sorted by the mean."""
    found: dict[Slot, int | None] = {
        slot: None if spec is None else describe(spec) for slot, spec in layer.quantization.items()
    }
    words = ["–" if one is None else "channel" if one < 0 else str(one) for one in found.values()]
    known = [one for one in found.values() if one is not None]
    if not known:
        return NOTHING
    return Cell(words[0] if len(set(words)) == 1 else " / ".join(words), sum(known) / len(known))
