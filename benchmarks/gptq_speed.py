"""How fast GPTQ is beside gptqmodel's, on the same weights and the same Hessian.

Claim: quantizing a matrix takes no longer than with gptqmodel, and finds the same codes.

    python -m benchmarks.gptq_speed [--shapes 1024x1024,4096x1024] [--bits 4] [--group 128]
                                    [--threads 2] [--rounds 5] [--json FILE]

Shapes are out × in. Random weights; inputs with correlated channels. The two take turns, and
`ratio` is gptqmodel's median time divided by ours. Its time is that of `GPTQ.quantize` alone, with
the Hessian at hand; ours is the whole call, from the float64 Gram matrix to the stored weight.
`equal` is the share of equal codes, `error` our output error divided by gptqmodel's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.process import quiet, settle_process
from asvd_q.quantization import QuantizedWeight, quantize
from asvd_q.quantization.gptqmodel import make_task
from asvd_q.report.tables import Table
from benchmarks.common import finish

__all__ = ["Point", "main", "measure"]


@dataclass(frozen=True)
class Point:
    """One shape; times in seconds, in the order in which they were taken."""

    shape: tuple[int, int]
    ours: list[float]
    gptqmodel: list[float]
    equal_codes: float
    error: float

    @property
    def ratio(self) -> float:
        return median(self.gptqmodel) / median(self.ours)


def measure(shape: tuple[int, int], spec: QuantSpec, rounds: int) -> Point:
    """Quantize one random matrix (out, in) with both, in turns; the first turn does not count."""
    weight, gram = _problem(shape)
    theirs_spec = QuantSpec.model_validate(spec.model_dump() | {"backend": "gptqmodel"})
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds + 1):
        ours.append(_seconds(lambda: quantize(weight, spec, gram)))
        with quiet():
            task = make_task(weight, spec, gram)
            theirs.append(_seconds(task.quantize))
    found, expected = quantize(weight, spec, gram), quantize(weight, theirs_spec, gram)
    assert isinstance(found, QuantizedWeight)
    assert isinstance(expected, QuantizedWeight)
    return Point(
        shape=shape,
        ours=ours[1:],
        gptqmodel=theirs[1:],
        equal_codes=float((found.codes == expected.codes).double().mean()),
        error=_output_error(weight, found, gram) / _output_error(weight, expected, gram),
    )


def _problem(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = (torch.randn(2 * columns, columns, generator=generator) @ mix).double()
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    return weight, inputs.T @ inputs / len(inputs)


def _output_error(weight: Tensor, found: QuantizedWeight, gram: Tensor) -> float:
    error = weight.double() - found.dequantize().double()
    return float((error @ gram * error).sum().sqrt())


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _shapes(text: str) -> list[tuple[int, int]]:
    pairs = [part.split("x") for part in text.split(",")]
    return [(int(rows), int(columns)) for rows, columns in pairs]


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="1024x1024,2048x2048,4096x1024,1024x4096")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spec = QuantSpec(
        method="gptq",
        bits=options.bits,
        group_size=options.group,
        symmetric=not options.asymmetric,
        act_order=options.act_order,
        clip="minmax",
    )
    points = [measure(shape, spec, options.rounds) for shape in _shapes(options.shapes)]
    rows = tuple(
        (
            f"{point.shape[0]} × {point.shape[1]}",
            f"{median(point.ours):.3f} s",
            f"{median(point.gptqmodel):.3f} s",
            f"{point.ratio:.2f}",
            f"{point.equal_codes:.3%}",
            f"{point.error:.4f}",
        )
        for point in points
    )
    columns = ("out × in", "ours", "gptqmodel", "ratio", "equal", "error")
    table = Table(f"GPTQ, {options.bits} bits, {options.threads} threads", columns, rows)
    content = {
        "spec": spec.model_dump(),
        "threads": options.threads,
        "points": [asdict(point) | {"ratio": point.ratio} for point in points],
    }
    finish(options, table, content)


if __name__ == "__main__":
    main()
