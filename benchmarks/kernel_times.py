"""Which form of a matrix decodes faster in ONNX Runtime on this machine.

Claim: a large matrix in 4-bit codes takes less time per decoded token than in floating point.

    python -m benchmarks.kernel_times [--model DIR] [--shapes 2048x2048,8192x2048] [--bits 2,4,8]
                                      [--group 32] [--dtype float32] [--accuracy-level 4]
                                      [--json FILE]

Shapes are out × in: those of the model's linear layers and its head, and whatever is given. Times
are those that `budget.decode_speed` counts, in microseconds for one row; the last column is the
time in floating point divided by that in 4-bit codes. The claim is judged for shapes of a million
weights and more, and the script ends with status 3 where it does not hold.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from asvd_q.models import SourceModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import QuantSpec
from asvd_q.process import settle_process
from asvd_q.report.tables import Table
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions
from benchmarks._claims import end_claim_failed
from benchmarks.common import finish

__all__ = ["forms", "main", "measure"]

_WREN = Path(__file__).resolve().parent.parent / "tests" / "data" / "wren"
_LARGE = 10**6

Shape = tuple[int, int]


def forms(bits: list[int], group: int) -> dict[str, QuantSpec | None]:
    """What is compared, by name; NF4 in blocks of 64."""
    codes = {f"{width} bits": QuantSpec(bits=width, group_size=group) for width in bits}
    return {"float": None, **codes, "NF4": QuantSpec(method="nf4", bits=4, group_size=64)}


def measure(
    exporter: OnnxExporter, shapes: list[Shape], specs: dict[str, QuantSpec | None]
) -> dict[Shape, dict[str, float]]:
    """Seconds by shape and form, all measured together."""
    matrices = [(shape, name) for shape in shapes for name in specs]
    seconds = exporter.decode_seconds([(shape, specs[name]) for shape, name in matrices])
    found: dict[Shape, dict[str, float]] = {shape: {} for shape in shapes}
    for (shape, name), time in zip(matrices, seconds, strict=True):
        found[shape][name] = time
    return found


def _shapes(options: argparse.Namespace) -> list[Shape]:
    skeleton = build_skeleton(SourceModel.open(str(options.model)))
    given = [tuple(map(int, part.split("x"))) for part in options.shapes.split(",") if part]
    own = [weight.shape for weight in skeleton.weights]
    return list(dict.fromkeys([*own, *((rows, columns) for rows, columns in given)]))


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=_WREN)
    parser.add_argument("--shapes", default="2048x2048,8192x2048")
    parser.add_argument("--bits", default="2,4,8")
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--accuracy-level", type=int, default=4)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    settings = OnnxOptions(dtype=options.dtype, accuracy_level=options.accuracy_level)
    exporter = OnnxExporter(settings)
    specs = forms(sorted({4, *map(int, options.bits.split(","))}), options.group)
    found = measure(exporter, _shapes(options), specs)
    ratios = {shape: times["float"] / times["4 bits"] for shape, times in found.items()}
    rows = tuple(
        (
            f"{shape[0]} × {shape[1]}",
            *(f"{1e6 * time:.1f}" for time in times.values()),
            f"{ratios[shape]:.2f}",
        )
        for shape, times in found.items()
    )
    title = f"µs per token, {exporter.runtime}, {options.dtype}, level {options.accuracy_level}"
    slower = [shape for shape in found if shape[0] * shape[1] >= _LARGE and not ratios[shape] > 1]
    content = {
        "runtime": exporter.runtime,
        "options": settings.model_dump(mode="json"),
        "group": options.group,
        "points": [
            {"shape": shape, "seconds": times, "ratio": ratios[shape]}
            for shape, times in found.items()
        ],
        "holds": not slower,
    }
    finish(options, Table(title, ("out × in", *specs, "float / 4 bits"), rows), content)
    if slower:
        names = ", ".join(f"{rows} × {columns}" for rows, columns in slower)
        end_claim_failed(f"4 bits are no faster than floating point for {names}")


if __name__ == "__main__":
    main()
