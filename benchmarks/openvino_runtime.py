"""Whether a runtime that is not ONNX Runtime reads codes in standard operators, and keeps them.

Claim: OpenVINO computes what the artefact's own runtime does, from the codes as they lie in the
file.

    python -m benchmarks.openvino_runtime ARTEFACT --python DIR/bin/python [--tokens 96]
                                          [--threads 1] [--json FILE]

ARTEFACT is an export with `operators: standard`. OpenVINO has an interpreter of its own:

    python -m venv DIR
    DIR/bin/pip install openvino

The model's own tokenizer makes tokens of its README, or of this text; all but the last 16 are read
at once, and those one by one. `error` is ‖logits − reference‖ / ‖reference‖ and `arg max` the share
of tokens with the same most likely successor, against the artefact in ONNX Runtime at the level
that it records. OpenVINO rounds activations to int8 unless it is told not to: both are measured.
`weights` counts the types that its products of matrices read, the scores of attention included.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asvd_q.metrics import agreement, relative_error
from asvd_q.opening import open_anything
from asvd_q.process import settle_process
from asvd_q.report.tables import Table
from benchmarks._elsewhere import run_elsewhere
from benchmarks.common import finish

__all__ = ["Found", "compare", "main", "run_openvino"]

_STEPS = 16
_ROUNDING = {"as they are": 0, "to int8": -1}


@dataclass(frozen=True)
class Found:
    """OpenVINO beside ONNX Runtime.

    Attributes:
        activations: what OpenVINO does to them.
        error: ‖logits − reference‖ / ‖reference‖.
        same: share of tokens with the reference's most likely successor.
        seconds: per token, one at a time.
        weights: how many products read a type.
    """

    activations: str
    error: float
    same: float
    seconds: float
    weights: dict[str, int]


def compare(python: Path, artefact: Path, ids: Tensor, threads: int) -> list[Found]:
    """Logits of both runtimes on ids (1, tokens), 17 or more.

    Raises:
        RuntimeError: OpenVINO does not run the model.
    """
    prompt = ids.shape[1] - _STEPS
    runner = open_anything(artefact).runner
    logits, cache = runner.forward(ids[:, :prompt])
    parts = [logits]
    for token in ids[:, prompt:].split(1, dim=1):
        logits, cache = runner.forward(token, cache)
        parts.append(logits)
    reference = torch.cat(parts, dim=1)
    found = []
    for activations, group in _ROUNDING.items():
        logits, seconds, kinds = run_openvino(python, artefact, ids, prompt, group, threads)
        found.append(
            Found(
                activations,
                relative_error(reference, logits),
                float(agreement(reference, logits).double().mean()),
                seconds,
                dict(Counter(kinds)),
            )
        )
    return found


def run_openvino(
    python: Path, artefact: Path, ids: Tensor, prompt: int, group: int, threads: int
) -> tuple[Tensor, float, Sequence[str]]:
    """See `_openvino.py`: logits, seconds per token, and the types of weights."""
    with tempfile.TemporaryDirectory() as folder:
        feeds, results = Path(folder) / "feeds.npz", Path(folder) / "results.npz"
        np.savez(feeds, ids=ids.numpy(), prompt=prompt)
        script = Path(__file__).with_name("_openvino.py")
        arguments = (artefact / "model.onnx", feeds, results, group, threads)
        run_elsewhere([python, script, *arguments], "OpenVINO")
        with np.load(results) as archive:
            kinds = [str(kind) for kind in archive["kinds"]]
            return torch.from_numpy(archive["logits"]), float(archive["seconds"]), kinds


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="one that has OpenVINO")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    readme = options.artefact / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else str(__doc__)
    tokenizer = open_anything(options.artefact).tokenizer
    ids = tokenizer(text, return_tensors="pt").input_ids[:, : options.tokens]
    found = compare(options.python, options.artefact, ids, options.threads)
    rows = tuple(
        (
            one.activations,
            f"{one.error:.1e}",
            f"{one.same:.1%}",
            f"{1e3 * one.seconds:.1f} ms",
            ", ".join(f"{count} {kind}" for kind, count in sorted(one.weights.items())),
        )
        for one in found
    )
    columns = ("activations", "error", "arg max", "per token", "weights")
    table = Table(f"OpenVINO beside ONNX Runtime, {ids.shape[1]} tokens", columns, rows)
    finish(options, table, {"tokens": ids.shape[1], "found": [asdict(one) for one in found]})


if __name__ == "__main__":
    main()
