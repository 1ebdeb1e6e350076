"""How time and memory of the sensitivity sweeps grow with the model and the text.

    python -m benchmarks.growth [--layers 2,4,8] [--windows 8,16,32] [--widths 128,256,512]

Random Llama models, random tokens. One thing grows at a time, the others stay at their first
value; the exponent p of `size^p` is fitted to each by least squares on the logarithms. Every sweep
runs in a process of its own. Memory is the largest resident set less that of the process just
before the sweep, when everything is imported and no weight is read.

Expected: an exact candidate runs the blocks behind its own, so the exact sweep's time is quadratic
in layers; the fast one's is linear. Both are linear in tokens and, once the products dominate,
quadratic in width, with a cubic share from the decompositions.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import linear_regression
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from asvd_q.models import SourceModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.recipe import DecomposeSection
from asvd_q.report.run import versions
from asvd_q.report.tables import Table, print_table, size
from benchmarks._naive import published_ranks
from benchmarks._sweeps import Sweep, measure_alone
from benchmarks.common import finish

__all__ = ["Point", "Size", "exponent", "exponents", "grown", "main", "measure_point", "save_model"]

_VOCABULARY, _WINDOW, _HEAD = 512, 128, 32

Sensitivity = Literal["exact", "fast"]
SENSITIVITIES: tuple[Sensitivity, ...] = ("exact", "fast")


@dataclass(frozen=True)
class Size:
    """Of a model and a text.

    Attributes:
        layers: transformer blocks, of seven linear layers each.
        windows: of 128 tokens.
        width: of the hidden states; the MLP is three times as wide.
    """

    layers: int
    windows: int
    width: int


@dataclass(frozen=True)
class Point:
    """One sweep at one size."""

    size: Size
    sensitivity: Sensitivity
    seconds: float
    memory_bytes: int
    peak_memory_bytes: int


def grown(layers: Sequence[int], windows: Sequence[int], widths: Sequence[int]) -> list[Size]:
    """The first of each, then every other value of one axis with the first of the others."""
    first = Size(layers[0], windows[0], widths[0])
    return [
        first,
        *(replace(first, layers=value) for value in layers[1:]),
        *(replace(first, windows=value) for value in windows[1:]),
        *(replace(first, width=value) for value in widths[1:]),
    ]


def save_model(size: Size, folder: Path) -> Path:
    """A random Llama, float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // _HEAD,
        num_key_value_heads=max(size.width // _HEAD // 2, 1),
        max_position_embeddings=_WINDOW,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def measure_point(size: Size, sensitivity: Sensitivity, model: Path) -> Point:
    """A sweep over all layers and the paper's ratios; `model` is of that size."""
    skeleton = build_skeleton(SourceModel.open(str(model)))
    generator = np.random.default_rng(0)
    sweep = Sweep(
        model=model,
        windows=generator.integers(_VOCABULARY, size=(size.windows, _WINDOW)),
        ranks=published_ranks(weight for weight in skeleton.weights if weight.block is not None),
        section=DecomposeSection(),
        sensitivity=sensitivity,
    )
    found = measure_alone(sweep)
    return Point(
        size, sensitivity, found.seconds, found.added_memory_bytes, found.peak_memory_bytes
    )


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """p of the size^p that is nearest to the values, in logarithms; NaN where a value is 0."""
    if min(values) <= 0:
        return math.nan
    return linear_regression(list(map(math.log, sizes)), list(map(math.log, values))).slope


def exponents(
    points: Sequence[Point], value: Callable[[Point], float]
) -> dict[Sensitivity, dict[str, float]]:
    """Sensitivity → axis → exponent; an axis with a single size has none.

    Args:
        points: as measured at the sizes of `grown`.
    """
    first = points[0].size
    found: dict[Sensitivity, dict[str, float]] = {}
    for sensitivity in SENSITIVITIES:
        found[sensitivity] = {}
        for axis in asdict(first):
            along = [
                point
                for point in points
                if point.sensitivity == sensitivity
                and replace(point.size, **{axis: getattr(first, axis)}) == first
            ]
            if len(along) > 1:
                found[sensitivity][axis] = exponent(
                    [getattr(point.size, axis) for point in along], list(map(value, along))
                )
    return found


def _table(points: Sequence[Point]) -> Table:
    columns = ("sweep", "layers", "windows", "width", "seconds", "memory")
    rows = tuple(
        (
            point.sensitivity,
            *map(str, asdict(point.size).values()),
            f"{point.seconds:.2f}",
            size(point.memory_bytes),
        )
        for point in sorted(points, key=lambda point: point.sensitivity)
    )
    return Table(f"Sweeps of random models, windows of {_WINDOW} tokens", columns, rows)


def _exponent_table(content: dict[str, Any]) -> Table:
    axes = list(content["time_exponents"]["exact"])
    rows = tuple(
        (
            f"{sensitivity}, {what}",
            *(f"{content[f'{what}_exponents'][sensitivity][axis]:.2f}" for axis in axes),
        )
        for sensitivity in SENSITIVITIES
        for what in ("time", "memory")
    )
    return Table("\nExponents", ("sweep", *axes), rows)


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=_counts, default=[2, 4, 8])
    parser.add_argument("--windows", type=_counts, default=[8, 16, 32])
    parser.add_argument("--widths", type=_counts, default=[128, 256, 512], help="multiples of 32")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options: Any = parser.parse_args()
    points: list[Point] = []
    for wanted in grown(options.layers, options.windows, options.widths):
        with tempfile.TemporaryDirectory() as folder:
            model = save_model(wanted, Path(folder))
            points += [measure_point(wanted, sensitivity, model) for sensitivity in SENSITIVITIES]
    content = {
        "time_exponents": exponents(points, lambda point: point.seconds),
        "memory_exponents": exponents(points, lambda point: point.memory_bytes),
        "points": [asdict(point) for point in points],
        "window": _WINDOW,
        "vocabulary": _VOCABULARY,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    print_table(Console(), _table(points))
    finish(options, _exponent_table(content), content)


if __name__ == "__main__":
    main()
