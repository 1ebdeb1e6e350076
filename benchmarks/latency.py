"""What low rank, codes, and the two together are worth in time, in torch and in ONNX Runtime.

Claim: in ONNX Runtime codes, and factors in codes, decode faster than the dense model, one sequence
at a time.

    python -m benchmarks.latency [--batches 1,8] [--prompts 32,512] [--tokens 32] [--rounds 5]
                                 [--json FILE]

The bundled model as it is, with the factors of the shipped recipes, with GPTQ codes of 4 bits, and
with both; each from its store in torch, where codes are floating point again, and from its ONNX
artefact. All take turns within every round. A ratio is how many times as fast a model is as the
dense one in the same runtime, the median over the rounds of each round's own. The runs are those of
`benchmarks.demo`, in runs/demo; what is not there yet is made. The script ends with status 3 where
the claim does not hold.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from asvd_q.artefact import METADATA_FILE
from asvd_q.evaluation.latency import Compared, Load, times_as_fast
from asvd_q.opening import open_anything
from asvd_q.process import settle_process
from asvd_q.progress import silent
from asvd_q.report.run import RunRecord
from asvd_q.report.tables import Table
from asvd_q.speed import models_speed
from benchmarks._claims import end_claim_failed
from benchmarks.common import finish, names
from benchmarks.demo import CASES, folder_of, make, ranks_of

__all__ = ["CODES", "MODELS", "Point", "main", "points_of"]

MODELS = ("dense", "ASVD", "GPTQ 4", "ASVD + GPTQ 4")
"""Cases of the demo; the others are compared with the first."""

CODES = MODELS[2:]
"""Those that the claim is about."""

TORCH, ONNX = "torch", "ONNX Runtime"


@dataclass(frozen=True)
class Point:
    """One model in one runtime, at a batch and a length of prompt.

    Attributes:
        batch, prompt, tokens: sequences at once; tokens of each prompt, and after it.
        first_token_ratio, decode_ratio, total_ratio: times as fast as the dense model in the same
            runtime.
    """

    model: str
    runtime: str
    batch: int
    prompt: int
    tokens: int
    first_token_seconds: float
    decode_tokens_per_second: float
    first_token_ratio: float
    decode_ratio: float
    total_ratio: float


def points_of(found: Sequence[Compared]) -> list[Point]:
    """Every model beside the dense one of its runtime.

    Args:
        found: named "RUNTIME: MODEL".
    """
    dense = {
        (one.name.partition(": ")[0], one.timing.batch, one.timing.prompt): one.timing
        for one in found
        if one.name.endswith(f": {MODELS[0]}")
    }
    points = []
    for one in found:
        runtime, _, model = one.name.partition(": ")
        timing = one.timing
        reference = dense[runtime, timing.batch, timing.prompt]
        points.append(
            Point(
                model=model,
                runtime=runtime,
                batch=timing.batch,
                prompt=timing.prompt,
                tokens=timing.tokens,
                first_token_seconds=timing.first_token_seconds,
                decode_tokens_per_second=timing.decode_tokens_per_second,
                first_token_ratio=times_as_fast(reference, timing, lambda turn: turn.first).median,
                decode_ratio=times_as_fast(reference, timing, lambda turn: turn.rest).median,
                total_ratio=times_as_fast(reference, timing, lambda turn: turn.total).median,
            )
        )
    return points


def _runs() -> dict[str, Path]:
    """The demo's runs; those that are not there are made."""
    folders: dict[str, Path] = {}
    ranks: dict[str, int] = {}
    for name in MODELS:
        case = next(case for case in CASES if case.name == name)
        folders[name] = folder_of(case)
        if (folders[name] / "artefacts" / "onnx" / METADATA_FILE).is_file():
            record = RunRecord.read(folders[name])
        else:
            record, _ = make(case, ranks)
        ranks = ranks or ranks_of(record)
    return folders


def _table(points: Sequence[Point]) -> Table:
    rows = tuple(
        (
            point.model,
            point.runtime,
            f"{point.batch} × {point.prompt}",
            f"{1e3 * point.first_token_seconds:.1f} ms",
            f"{point.first_token_ratio:.2f}×",
            f"{point.decode_tokens_per_second:.0f} tok/s",
            f"{point.decode_ratio:.2f}×",
            f"{point.total_ratio:.2f}×",
        )
        for point in points
    )
    columns = ("model", "runtime", "batch × prompt", "first token", "×", "decode", "×", "total ×")
    return Table("wren: time to the first token and speed after it", columns, rows)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(int, names(text)))


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=_counts, default=(1, 8))
    parser.add_argument("--prompts", type=_counts, default=(32, 512))
    parser.add_argument("--tokens", type=int, default=32, help="generated after each prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    folders = _runs()
    opened = {f"{TORCH}: {name}": open_anything(folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        opened[f"{ONNX}: {name}"] = open_anything(folder / "artefacts" / "onnx")
    load = Load(options.batches, options.prompts, options.tokens, options.rounds)
    points = points_of(models_speed(opened, load, silent))
    finish(options, _table(points), [asdict(point) for point in points])
    slower = [
        f"{point.model} after {point.prompt} tokens"
        for point in points
        if point.runtime == ONNX
        and point.batch == 1
        and point.model in CODES
        and point.decode_ratio <= 1
    ]
    if slower:
        end_claim_failed(f"no faster in {ONNX} than the dense model: {', '.join(slower)}")


if __name__ == "__main__":
    main()
