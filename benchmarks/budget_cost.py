"""What the search under a budget costs, in forward passes over the calibration text.

Claim: the whole front takes no more than 40 forward passes beside the quantization of candidates.

    python -m benchmarks.budget_cost --data DIR [--growth] [--layers 2,4,8] [--widths 128,256]

Times are of the processor, in this process: the machine may be busy. A pass is the dense model on
all calibration windows, head included. `quantization` is all that choosing codes takes, whatever
form they are for; `the rest` is one pass forwards, one backwards, decompositions, and the losses of
all forms on the sample. `--growth` adds random models: layers and width grow one at a time, and
`size^p` is fitted to each. They have 8 windows of 128 random tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asvd_q.budget.format import format_count
from asvd_q.budget.front import front
from asvd_q.budget.solving import budget_offering
from asvd_q.compression import matrices
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.progress import silent
from asvd_q.quantization import float_type_of
from asvd_q.recipe import Recipe
from asvd_q.report.tables import Table
from benchmarks.budget import BUDGETS, VARIANTS
from benchmarks.common import BATCH, Bench, finish, parse_options
from benchmarks.growth import Size, exponent, grown, save_model

__all__ = ["Cost", "main", "measure"]


@dataclass(frozen=True)
class Cost:
    """Processor seconds of one search.

    Attributes:
        model: what was searched.
        layers: that were offered forms.
        trials: forms that were made.
        forward: one pass over the calibration windows.
        quantization: choosing codes.
        rest: of the sweep.
        front: choices at all budgets, together.
    """

    model: str
    layers: int
    trials: int
    forward: float
    quantization: float
    rest: float
    front: float

    @property
    def passes(self) -> float:
        """All but quantization, in forward passes."""
        return (self.rest + self.front) / self.forward


def measure(name: str, recipe: Recipe, model: BlockwiseModel, windows: Tensor) -> Cost:
    """Carry a search out in a folder of its own, and take its time."""
    forward = _timed(lambda: _pass(model, windows))
    with tempfile.TemporaryDirectory() as folder, _counting() as spent:
        start = time.process_time()
        tried, offering = budget_offering(
            recipe,
            model,
            windows,
            format_count(recipe, float_type_of(model.source.dtype), ()),
            Path(folder),
            silent,
        )
        seconds = time.process_time() - start
    return Cost(
        model=name,
        layers=len(tried),
        trials=sum(len(found.tried) + len(found.uniform) for found in tried.values()),
        forward=forward,
        quantization=spent[0],
        rest=seconds - spent[0],
        front=_timed(lambda: front(offering, BUDGETS)),
    )


@contextmanager
def _counting() -> Iterator[list[float]]:
    """The seconds that quantizing takes inside the context."""
    spent, original = [0.0], matrices.quantize

    def quantize(*args: Any) -> Any:
        start = time.process_time()
        try:
            return original(*args)
        finally:
            spent[0] += time.process_time() - start

    matrices.quantize = quantize  # type: ignore[attr-defined]
    try:
        yield spent
    finally:
        matrices.quantize = original  # type: ignore[attr-defined]


@torch.no_grad()
def _pass(model: BlockwiseModel, windows: Tensor) -> None:
    with model.outside() as outside:
        hidden = [model.embed(outside, batch) for batch in torch.split(windows, BATCH)]
        for index in range(len(model)):
            block = model.load_block(index)
            hidden = [model.run_block(block, index, states) for states in hidden]
        for states in hidden:
            model.logits(outside, states)


def _timed(work: Callable[[], object]) -> float:
    work()
    start = time.process_time()
    work()
    return time.process_time() - start


def _grown(layers: list[int], widths: list[int]) -> list[tuple[Size, Cost]]:
    found = []
    for wanted in grown(layers, [8], widths):
        with tempfile.TemporaryDirectory() as folder:
            model = save_model(wanted, Path(folder))
            recipe = Recipe.model_validate(_fields(str(model), 128))
            numbers = np.random.default_rng(0).integers(512, size=(wanted.windows, 128))
            opened = BlockwiseModel(SourceModel.open(str(model)))
            name = f"{wanted.layers} blocks, width {wanted.width}"
            found.append((wanted, measure(name, recipe, opened, torch.from_numpy(numbers))))
    return found


def _fields(model: str, window: int) -> dict[str, Any]:
    sections = VARIANTS["groups"]
    calibration = {"corpora": ["python-docs"], "window": window, "batch_size": BATCH}
    return {
        "model": {"path": model},
        **sections,
        "calibration": calibration,
        "budget": {**sections["budget"], "bits_per_weight": 3.0},
    }


def _exponents(points: list[tuple[Size, Cost]]) -> dict[str, dict[str, float]]:
    """Axis → what → exponent."""
    first = points[0][0]
    found: dict[str, dict[str, float]] = {}
    for axis, other in (("layers", "width"), ("width", "layers")):
        along = [pair for pair in points if getattr(pair[0], other) == getattr(first, other)]
        if len(along) > 1:
            sizes = [getattr(one, axis) for one, _ in along]
            found[axis] = {
                what: exponent(sizes, [getattr(cost, what) for _, cost in along])
                for what in ("forward", "quantization", "rest")
            }
    return found


def main() -> None:
    def counts(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true", help="random models too")
    parser.add_argument("--layers", type=counts, default=[2, 4, 8])
    parser.add_argument("--widths", type=counts, default=[128, 256])
    options = parse_options(__doc__ or "", parser)
    bench = Bench(options)
    recipe = Recipe.model_validate(_fields(str(options.model), options.window))
    model = BlockwiseModel(bench.source, skeleton=bench.skeleton)
    costs = [measure(bench.source.name, recipe, model, bench.calibration())]
    points = _grown(options.layers, options.widths) if options.growth else []
    costs += [cost for _, cost in points]
    table = Table(
        "Search under a budget, seconds of the processor",
        ("model", "layers", "trials", "forward", "quantization", "the rest", "front", "passes"),
        tuple(
            (
                cost.model,
                str(cost.layers),
                str(cost.trials),
                *(
                    f"{getattr(cost, what):.2f}"
                    for what in ("forward", "quantization", "rest", "front")
                ),
                f"{cost.passes:.1f}",
            )
            for cost in costs
        ),
    )
    growth = _exponents(points) if points else {}
    content = {
        "costs": [{**asdict(cost), "passes": cost.passes} for cost in costs],
        "exponents": growth,
        "threads": torch.get_num_threads(),
    }
    finish(options, table, content)
    for axis, found in growth.items():
        words = ", ".join(f"{what} {value:.2f}" for what, value in found.items())
        print(f"exponents in {axis}: {words}")


if __name__ == "__main__":
    main()
