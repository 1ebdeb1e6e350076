"""What is said of other runtimes and packages: who computes the same, and whose codes lose what."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from asvd_q.report.tables import size
from benchmarks.page.grid import CORPORA, cells, grid
from benchmarks.page.result import Results

__all__ = [
    "browser_finding",
    "browser_table",
    "families_table",
    "parity_finding",
    "parity_table",
    "stacking_finding",
    "stacking_table",
]

Row = dict[str, Any]

_GIVEN = "wren"


def parity_table(results: Results) -> str:
    """Every artefact of the bundled model in every loader."""
    return grid(
        (
            *("compression", "format", "loader", "error of the logits", "KL, nats", "arg max"),
            *("greedy", "load", "peak", "files"),
        ),
        (
            (
                *(row["case"], f"`{row['format']}`", row["loader"]),
                *(_small(row["relative_error"]), _small(row["kl"])),
                f"{100 * row['agreement']:.2f} %",
                f"{row['greedy_before']:.0f}, {100 * row['greedy_equal']:.0f} %",
                f"{row['load_seconds']:.2f} s",
                size(row["peak_memory_bytes"]),
                size(row["bytes"]),
            )
            for row in _loaded(results, given=True)
        ),
    )


def families_table(results: Results) -> str:
    """The least and the greatest error of all families, by compression, format and loader."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in _loaded(results, given=False):
        found.setdefault((row["case"], row["format"], row["loader"]), []).append(row)
    rows = []
    for (case, form, loader), group in found.items():
        errors = sorted(row["relative_error"] for row in group)
        spread = " to ".join(dict.fromkeys(map(_small, (errors[0], errors[-1]))))
        worst = _small(max(row["kl"] for row in group))
        rows.append((case, f"`{form}`", loader, str(len(group)), spread, worst))
    heads = ("compression", "format", "loader", "families", "error of the logits", "KL at most")
    return grid(heads, rows)


def parity_finding(results: Results) -> str:
    """How far the worst artefact is, which are exact, and what failed."""
    rows = list(_loaded(results, given=True))
    everything: list[Row] = results["parity"].numbers["rows"]
    failed = sum(row["failed"] is not None for row in everything)
    exact = sorted({row["format"] for row in rows} - {r["format"] for r in rows if _off(r)})
    least = min(row["agreement"] for row in rows)
    names = " and ".join(f"`{name}`" for name in exact)
    return (
        f"Of {len(everything)} artefacts in a loader {failed} failed. The bundled model's have the "
        f"store's arg max for {100 * least:.1f} % of the tokens at least, and {names} checkpoints "
        "its logits to the bit."
    )


def stacking_table(results: Results) -> str:
    """Weight files and perplexity of factors in everybody's codes."""
    rows: list[Row] = results["stacking"].numbers
    return grid(
        ("model", "weight files", *CORPORA.values()),
        (
            (
                row["model"],
                "–" if row["disk_bytes"] is None else size(row["disk_bytes"]),
                *cells(row["perplexity"], CORPORA),
            )
            for row in rows
        ),
    )


def stacking_finding(results: Results) -> str:
    """Ours beside the best of the others, by method."""
    rows: list[Row] = results["stacking"].numbers
    first, name = next(iter(CORPORA.items()))
    sentences = []
    for method in ("GPTQ 4", "NF4"):
        own = [row for row in rows if row["model"].endswith(f"+ {method}")]
        others = [row for row in rows if row["model"].endswith(f" {method}") and row not in own]
        if own and others:
            best = min(others, key=lambda row: row["perplexity"][first])
            sentences.append(
                f"Our {method} of the factors has {own[0]['perplexity'][first]:.2f} on {name}, the "
                f"best of the others {best['perplexity'][first]:.2f} ({best['model']})."
            )
    return " ".join(sentences)


def browser_table(results: Results) -> str:
    """Equal tokens and speed in a headless browser, by export."""
    content = results["browser"].numbers
    longest = max(row["prompt_tokens"] for row in content["rows"])
    cases: dict[str, list[Row]] = {}
    for row in content["rows"]:
        cases.setdefault(row["title"], []).append(row)
    return grid(
        (
            *("export", "equal before the first that differs", "equal texts"),
            *("tokens per second", f"after {longest} tokens"),
        ),
        (
            (
                case,
                f"{sum(row['before'] for row in rows)} of {sum(len(r['expected']) for r in rows)}",
                f"{sum(row['tokens'] == row['expected'] for row in rows)} of {len(rows)}",
                _speeds([row["tokens_per_second"] for row in rows if not row["long"]]),
                _speeds([row["tokens_per_second"] for row in rows if row["long"]]),
            )
            for case, rows in cases.items()
        ),
    )


def browser_finding(results: Results) -> str:
    """Whether the exact exports give the same texts."""
    rows: list[Row] = [row for row in results["browser"].numbers["rows"] if row["exact"]]
    equal = sum(row["tokens"] == row["expected"] for row in rows)
    return (
        f"Where both compute in float32, {equal} of {len(rows)} texts are the same in the browser "
        "and on the CPU."
    )


def _loaded(results: Results, *, given: bool) -> Iterable[Row]:
    """Rows with numbers, of the bundled model or of the random ones."""
    rows: list[Row] = results["parity"].numbers["rows"]
    return (row for row in rows if row["failed"] is None and (row["model"] == _GIVEN) is given)


def _off(row: Row) -> bool:
    return bool(row["relative_error"])


def _small(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _speeds(found: list[float | None]) -> str:
    known = sorted(value for value in found if value is not None)
    if not known:
        return "–"
    spread = f" ({known[0]:.0f} to {known[-1]:.0f})" if len(known) > 1 else ""
    return f"{median(known):.0f}{spread}"
