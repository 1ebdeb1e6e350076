"""Latencies of several models as a table, as JSON, and as a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from asvd_q.evaluation.latency import Compared, Ratio
from asvd_q.files import write_text
from asvd_q.report.plots import figure_of, save_plot
from asvd_q.report.run import versions
from asvd_q.report.tables import Table

__all__ = ["latency_table", "plot_latency", "write_latency"]

_COLOURS = ("#6b6b6b", "#2f6fb0", "#d1622b", "#3f8f5f", "#8a5ba8", "#b8952f")


def latency_table(found: Sequence[Compared]) -> Table:
    """One row per model, batch size and length of prompt; the first model is what others' ratios
    are to."""
    first = found[0]
    rows = []
    for one in found:
        timing = one.timing
        ratios = (one.first_token, one.decode, one.total)
        rows.append(
            (
                one.name,
                f"{timing.batch} × {timing.prompt}",
                f"{timing.first_token_seconds * 1e3:.1f} ms",
                f"{timing.decode_tokens_per_second:.1f} tok/s",
                f"{timing.total_seconds * 1e3:.0f} ms",
                *("1×" if one.name == first.name else _shown(ratio) for ratio in ratios),
                one.runtime,
            )
        )
    columns = ("model", "batch × prompt", "first token", "decode", "total")
    ratios_of = ("first token", "decode", "total")
    return Table(
        f"{first.timing.tokens} tokens generated, medians of {len(first.timing.turns)} rounds in "
        f"turns; × is how many times as fast as {first.name} (least to most of the rounds)",
        (*columns, *(f"{part} ×" for part in ratios_of), "runtime"),
        tuple(rows),
    )


def write_latency(
    found: Sequence[Compared], paths: Mapping[str, Path], threads: int | None, file: Path
) -> None:
    """Replace a file by the numbers, every round's among them.

    Args:
        paths: of the models by their names.
        threads: as they were limited.
    """
    content = {
        "compared_with": found[0].name,
        "threads": threads,
        "processors": os.cpu_count(),
        "versions": versions(),
        "models": {name: str(path) for name, path in paths.items()},
        "results": [
            {
                "model": one.name,
                "runtime": one.runtime,
                "batch": one.timing.batch,
                "prompt": one.timing.prompt,
                "tokens": one.timing.tokens,
                "first_token_seconds": one.timing.first_token_seconds,
                "prefill_tokens_per_second": one.timing.prefill_tokens_per_second,
                "decode_tokens_per_second": one.timing.decode_tokens_per_second,
                "total_seconds": one.timing.total_seconds,
                "times_as_fast": {
                    "first_token": asdict(one.first_token),
                    "decode": asdict(one.decode),
                    "total": asdict(one.total),
                },
                "turns": [asdict(turn) for turn in one.timing.turns],
            }
            for one in found
        ],
    }
    write_text(file, json.dumps(content, indent=1) + "\n")


def plot_latency(found: Sequence[Compared], file: Path) -> None:
    """Seconds to the first token and tokens per second after it, a bar per model.

    Args:
        file: ends in .svg or .png; the same numbers give the same bytes.
    """
    names = list(dict.fromkeys(one.name for one in found))
    shapes = list(dict.fromkeys(f"{one.timing.batch} × {one.timing.prompt}" for one in found))
    figure, [panels] = figure_of(1, 2, width=5, height=4.5)
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        timings = [one.timing for one in found if one.name == name]
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(shapes))]
        colour = _COLOURS[index % len(_COLOURS)]
        for axes, values in zip(
            panels,
            (
                [1e3 * timing.first_token_seconds for timing in timings],
                [timing.decode_tokens_per_second for timing in timings],
            ),
            strict=True,
        ):
            bars = axes.bar(places, values, width, color=colour, label=name)
            axes.bar_label(bars, fmt="%.3g", fontsize=7)
    titles = ("Time to the first token, ms", "Decode, tokens per second of all sequences")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.set_xticks(range(len(shapes)), shapes)
        axes.set_xlabel("batch × tokens of the prompt")
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    save_plot(figure, file)


def _shown(ratio: Ratio) -> str:
    return f"{ratio.median:.2f}× ({ratio.low:.2f} to {ratio.high:.2f})"
