"""A study as tables: for the terminal, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from asvd_q.report.markdown import markdown_table
from asvd_q.report.tables import Table, size
from asvd_q.study.record import CorpusSummary, Row, Spread, StudyRecord

__all__ = ["dense_table", "study_page", "study_table"]

_NOTHING = "–"


def study_table(record: StudyRecord) -> Table:
    """One row per model: its settings, its size, and its quality corpus by corpus.

    A setting that makes no difference to a model is left open; one that makes none between some of
    its values has them all.
    """
    shown = _measures(record)
    heads = [f"{corpus}{_HEADS[name]}" for corpus in record.corpora for name in shown]
    rows = tuple(_cells(group, record, shown) for group in _models(record.rows))
    return Table(_title(record), (*record.varied, "kept", "bytes", *heads), rows)


def dense_table(record: StudyRecord) -> Table:
    """The uncompressed model on every text."""
    rows = tuple(
        (
            f"{one.corpus} ({one.split})",
            f"{one.windows} × {one.window}",
            f"{one.perplexity:.3f}",
        )
        for one in record.dense
    )
    return Table("Dense", ("corpus", "tokens", "perplexity"), rows)


def study_page(record: StudyRecord, plots: Sequence[Path]) -> str:
    """The study as Markdown, with its tables, failures and plots."""
    dense = {quality.runtime for quality in record.dense}
    parts = [
        f"# {record.name}",
        f"Model: {', '.join(record.model)}. Varied: {', '.join(record.varied)}."
        + (f" Repeated over: {', '.join(record.repeated)}." if record.repeated else "")
        + f" Computed with asvd-q {record.versions['asvd-q']}, {', '.join(sorted(dense))}.",
        f"## {study_table(record).title}",
        markdown_table(study_table(record), align=True),
        "Change is of the perplexity, against the dense model on the same tokens; kept is the "
        "share of the parameters of the layers looked at; bytes are the whole model's, in a "
        "store's count." + _about_repetitions(record),
    ]
    failures = _failures(record)
    if failures:
        parts += ["## Failed", "\n".join(failures)]
    parts += ["## The dense model", markdown_table(dense_table(record), align=True)]
    parts += [f"![{record.name}]({plot.name})" for plot in plots if plot.suffix == ".svg"]
    return "\n\n".join(parts) + "\n"


_HEADS = {"perplexity": "", "change": ": change", "kl": ": KL", "agreement": ": same arg max"}


def _measures(record: StudyRecord) -> list[str]:
    found = ["perplexity", "change"]
    for name in ("kl", "agreement"):
        if any(getattr(one, name) is not None for row in record.rows for one in row.corpora):
            found.append(name)
    return found


def _title(record: StudyRecord) -> str:
    count = len({key for row in record.rows for key in row.keys})
    return f"{record.name}: {count} models"


def _models(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of one model each."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.keys, []).append(row)
    return list(groups.values())


def _cells(group: Sequence[Row], record: StudyRecord, shown: Sequence[str]) -> tuple[str, ...]:
    row = group[0]
    settings = [_setting(key, group, record) for key in record.varied]
    kept = _NOTHING if row.kept_ratio is None else f"{row.kept_ratio.mean:.4f}"
    whole = _NOTHING if row.total_bytes is None else size(round(row.total_bytes.mean))
    cells = [
        _cell(None if row.corpus(corpus) is None else _of(row, corpus), name, bool(row.failures))
        for corpus in record.corpora
        for name in shown
    ]
    return (*settings, kept, whole, *cells)


def _setting(key: str, group: Sequence[Row], record: StudyRecord) -> str:
    labels = dict.fromkeys(row.settings[key] for row in group)
    everywhere = len(labels) > 1 and labels.keys() == {row.settings[key] for row in record.rows}
    return _NOTHING if everywhere else " / ".join(labels)


def _of(row: Row, corpus: str) -> CorpusSummary:
    found = row.corpus(corpus)
    assert found is not None
    return found


def _cell(summary: CorpusSummary | None, name: str, failed: bool) -> str:
    if summary is None:
        return "failed" if failed and name == "perplexity" else _NOTHING
    spread: Spread | None = getattr(summary, name)
    if spread is None:
        return _NOTHING
    text = _number(spread.mean, name)
    if spread.deviation is not None:
        text += f" ± {_number(spread.deviation, name).removeprefix('+')}"
    return text


def _number(value: float, name: str) -> str:
    if name == "change":
        return f"{value:+.2%}"
    if name == "agreement":
        return f"{value:.2%}"
    return f"{value:.4f}" if name == "kl" else f"{value:.3f}"


def _about_repetitions(record: StudyRecord) -> str:
    if not record.repeated:
        return ""
    return (
        " Numbers are means of the repetitions, with their sample standard deviation; least and "
        "largest are in study.json."
    )


def _failures(record: StudyRecord) -> list[str]:
    return [f"- {one.title}: {one.failure}" for one in record.points if one.failure is not None]
