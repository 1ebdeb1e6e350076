"""What the bytes of compared runs buy, as a plot."""

from __future__ import annotations

from pathlib import Path

from asvd_q.errors import ArtefactError, RecipeError
from asvd_q.files import atomic_path
from asvd_q.report.compare import Comparison

__all__ = ["plot_comparison", "require_plottable"]

_TYPES = (".svg", ".png")
_MIB = 1 << 20


def require_plottable(path: Path) -> None:
    """Raises RecipeError when a file's ending is of no type that is written."""
    if path.suffix.lower() not in _TYPES:
        raise RecipeError(f"--plot {path}: give a file that ends with {' or '.join(_TYPES)}")


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Change of the perplexity against the dense model's by bytes of the whole model.

    One panel for each text, with the runs that are comparable on it.

    Args:
        path: .svg or .png; the same comparison gives the same bytes.

    Raises:
        ArtefactError: no run has a perplexity and its dense model's.
        RecipeError: a file of another type.
    """
    require_plottable(path)
    panels = {text: _points(comparison, text) for text in comparison.texts}
    panels = {text: points for text, points in panels.items() if points}
    if not panels:
        raise ArtefactError(
            "--plot: none of the runs has the perplexity of its dense model: evaluate them with "
            "evaluate.dense: true"
        )
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, ((corpus, split), points) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
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
    kind = path.suffix.lower().removeprefix(".")
    with atomic_path(path) as partial, rc_context({"svg.hashsalt": "compare"}):
        figure.savefig(
            partial, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None
        )


def _points(comparison: Comparison, text: tuple[str, str]) -> list[tuple[str, float, float]]:
    """Label, MiB and change in per cent of the runs that may stand in one panel."""
    return [
        (run.label, run.record.total_bytes.after / _MIB, 100 * score.change)
        for run in comparison.runs
        if (score := run.scores.get(text)) is not None
        and score.change is not None
        and not score.unlike
    ]
