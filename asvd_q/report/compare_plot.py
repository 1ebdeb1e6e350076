"""What the bytes of compared runs buy, as a plot."""

from __future__ import annotations

from pathlib import Path

from asvd_q.errors import ArtefactError
from asvd_q.report.compare import Comparison
from asvd_q.report.plots import figure_of, require_plot, save_plot

__all__ = ["plot_comparison"]

_MIB = 1 << 20


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Change of the perplexity against the dense model's by bytes of the whole model.

    One panel for each text, with the runs that are comparable on it.

    Args:
        path: .svg or .png; the same comparison gives the same bytes.

    Raises:
        ArtefactError: no run has a perplexity and its dense model's.
        RecipeError: a file of another type.
    """
    require_plot(path)
    panels = {text: _points(comparison, text) for text in comparison.texts}
    panels = {text: points for text, points in panels.items() if points}
    if not panels:
        raise ArtefactError(
            "--plot: none of the runs has the perplexity of its dense model: evaluate them with "
            "evaluate.dense: true"
        )
    figure, [row] = figure_of(1, len(panels), width=5.5, height=4.5)
    for axes, ((corpus, split), points) in zip(row, panels.items(), strict=True):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(0, color="#b8b8b8", linewidth=1)
        for label, size, change in points:
            axes.scatter(size, change, color="#2f6fb0", zorder=3)
            axes.annotate(label, (size, change), xytext=(5, 5), textcoords="offset points")
        axes.margins(0.2)
        axes.set_title(f"{corpus} ({split})")
        axes.set_xlabel("whole model, MiB")
        axes.set_ylabel("perplexity against the dense model, %")
    save_plot(figure, path)


def _points(comparison: Comparison, text: tuple[str, str]) -> list[tuple[str, float, float]]:
    """Label, MiB and change in per cent of the runs that may stand in one panel."""
    return [
        (run.label, run.record.total_bytes.after / _MIB, 100 * change)
        for run in comparison.runs
        if (score := run.scores.get(text)) is not None
        and (change := score.assessed.change) is not None
        and not score.unlike
    ]
