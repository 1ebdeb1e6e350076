"""Plots of a rank search, each as PNG and SVG, and what other plots are made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.errors import RecipeError
from asvd_q.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ATTENTION",
    "MLP",
    "NATS",
    "OTHER",
    "figure_of",
    "part_of",
    "plot_budgets",
    "plot_kept_ratios",
    "plot_predictions",
    "plot_sensitivities",
    "require_plot",
    "save_figure",
    "save_plot",
]

ATTENTION, MLP, OTHER = "attention", "MLP", "other"
NATS = "nats per token"

_COLOURS = {ATTENTION: "#2f6fb0", MLP: "#d1622b", OTHER: "#6b6b6b"}
_PLOT_TYPES = (".svg", ".png")
_ATTENTION_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "out_proj")
_MLP_KINDS = ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc", "fc1", "fc2")


def plot_sensitivities(
    losses: Mapping[str, Mapping[float, float]],
    folder: Path,
    name: str = "sensitivity",
    *,
    unit: str = NATS,
) -> list[Path]:
    """Loss increase of every layer against the share of it that is kept.

    Args:
        losses: layer → kept ratio → nats per token, or whatever orders the candidates.
        folder: an existing folder.
        unit: of the losses.

    Returns:
        The files written.
    """
    axes, save = _canvas(folder, name)
    for layer, curve in losses.items():
        ratios = sorted(curve)
        values = [max(curve[ratio], 1e-6) for ratio in ratios]
        axes.plot(ratios, values, color=_COLOURS[part_of(layer)], alpha=0.5, linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("kept ratio of the layer's parameters")
    axes.set_ylabel(f"{'loss increase' if unit == NATS else 'sensitivity'}, {unit}")
    axes.set_title("What truncating one layer costs")
    _legend(axes, {part_of(layer) for layer in losses})
    return save()


def plot_kept_ratios(
    kept: Mapping[str, float], folder: Path, name: str = "kept-ratio"
) -> list[Path]:
    """The chosen kept ratio of every layer along the depth of the model; 1 is dense.

    Args:
        kept: layer → kept ratio, in model order.
        folder: an existing folder.
    """
    axes, save = _canvas(folder, name)
    layers = list(kept)
    axes.bar(
        range(len(layers)),
        [kept[layer] for layer in layers],
        color=[_COLOURS[part_of(layer)] for layer in layers],
    )
    axes.set_xlabel("layer, in the order of the model")
    axes.set_ylabel("kept ratio")
    axes.set_ylim(0, 1.02)
    axes.set_title("What the search keeps of every layer")
    _legend(axes, {part_of(layer) for layer in layers})
    return save()


def plot_predictions(
    points: Sequence[tuple[float, float]],
    chosen: tuple[float, float],
    folder: Path,
    name: str = "predicted-measured",
    *,
    unit: str = NATS,
) -> list[Path]:
    """What allocations lose with all their layers truncated, against what was predicted.

    Args:
        points: (predicted, measured) loss increase of allocations along the trade-off.
        chosen: of the one that the search ends with.
        folder: an existing folder.
        unit: of the predictions; where it is that of the measurements, they lie on the diagonal
            if they are right.
    """
    axes, save = _canvas(folder, name)
    everything = sorted([*points, chosen])
    axes.plot(*zip(*everything, strict=True), color="#b8b8b8", linewidth=1, zorder=1)
    if points:
        axes.scatter(*zip(*points, strict=True), color="#2f6fb0", label="other allocations")
    axes.scatter(*chosen, color="#d1622b", s=70, zorder=3, label="chosen")
    if unit == NATS:
        ends = [everything[0][0], everything[-1][0]]
        axes.plot(ends, ends, color="#6b6b6b", linestyle=":", linewidth=1, label="as predicted")
    if min(map(min, everything)) > 0:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel(f"predicted: sum over the layers, {unit}")
    axes.set_ylabel(f"measured: all layers truncated, {NATS}")
    axes.set_title("Predicted and measured loss increase")
    axes.legend(frameon=False)
    return save()


def plot_budgets(
    choices: Sequence[tuple[float, float]],
    uniform: Mapping[str, Sequence[tuple[float, float]]],
    folder: Path,
    name: str = "budgets",
    *,
    chosen: tuple[float, float] | None = None,
) -> list[Path]:
    """Predicted loss by size, of chosen models and of plain quantization.

    Args:
        choices: (bits per weight, loss increase) of the best model at every budget.
        uniform: method → the same of models whose layers are all quantized alike.
        folder: an existing folder.
        chosen: the model that a recipe's budget comes to.
    """
    axes, save = _canvas(folder, name)
    least = 1e-6  # of a logarithmic axis

    def spots(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
        return [bits for bits, _ in points], [max(loss, least) for _, loss in points]

    axes.plot(*spots(choices), color="#2f6fb0", linewidth=1.5, label="chosen layer by layer")
    for (method, points), marker in zip(uniform.items(), "sD^vo", strict=False):
        axes.plot(*spots(points), color="#6b6b6b", marker=marker, linestyle=":", label=method)
    if chosen is not None:
        axes.scatter(
            *spots([chosen]), color="#d1622b", s=70, zorder=3, label="this recipe's budget"
        )
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight of the linear layers")
    axes.set_ylabel(f"predicted loss increase, {NATS}")
    axes.set_title("What a budget costs")
    axes.legend(frameon=False)
    return save()


def part_of(layer: str) -> str:
    """Whether a layer belongs to attention, to the MLP, or to something else, by its name."""
    kind = layer.rsplit(".", 1)[-1]
    inside = any("attn" in part or "attention" in part for part in layer.split("."))
    if inside or kind in _ATTENTION_KINDS:
        return ATTENTION
    return MLP if kind in _MLP_KINDS or ".mlp." in layer else OTHER


def figure_of(
    lines: int, columns: int, *, width: float, height: float
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of empty panels, and those line by line.

    Args:
        width, height: of one panel, in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, lines * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(lines, columns, squeeze=False).tolist()


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and as SVG; the same figure gives the same bytes.

    Returns:
        The files written.
    """
    from matplotlib import rc_context

    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, dpi=150)
    # Without a date, and with names that are no random numbers.
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(svg, metadata={"Date": None})
    return [png, svg]


def require_plot(path: Path) -> None:
    """Raises RecipeError when a file that --plot names is of no type that is written."""
    if path.suffix.lower() not in _PLOT_TYPES:
        raise RecipeError(f"--plot {path}: the name ends in {' or '.join(_PLOT_TYPES)}")


def save_plot(figure: Figure, path: Path) -> None:
    """Replace one file by a figure; the same figure gives the same bytes.

    Args:
        path: ends in .svg or .png.
    """
    from matplotlib import rc_context

    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else None
    with atomic_path(path) as partial, rc_context({"svg.hashsalt": "asvd-q"}):
        figure.savefig(partial, format=kind, dpi=150, metadata=metadata)


def _canvas(folder: Path, name: str) -> tuple[Axes, Callable[[], list[Path]]]:
    """Empty axes, and what saves them as `name` in both formats."""
    figure, [[axes]] = figure_of(1, 1, width=7.5, height=4.5)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return axes, lambda: save_figure(figure, folder, name)


def _legend(axes: Axes, parts: set[str]) -> None:
    from matplotlib.patches import Patch

    axes.legend(
        handles=[
            Patch(color=colour, label=part) for part, colour in _COLOURS.items() if part in parts
        ],
        frameon=False,
    )
