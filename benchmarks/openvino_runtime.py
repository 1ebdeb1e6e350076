"""Whether a runtime that is not ONNX Runtime reads codes in standard operators, and keeps them.

Claim: OpenVINO computes what the artefact's own runtime does, from the codes as they lie in the
file.

    python -m benchmarks.openvino_runtime (--python PATH | --make-environment DIR) [ARTEFACT]
                                          [--tokens 96] [--threads 1] [--json FILE]

ARTEFACT is an export with `operators: standard`; without one the bundled model is compressed to
low-rank factors in 4 bits and exported so, at level 0. OpenVINO has an environment of its own:
`--make-environment` creates it from `benchmarks/openvino-requirements.txt`, `--python` names the
interpreter of one that is there.

The model's own tokenizer makes tokens of its README, or of this text; all but the last 16 are read
at once, and those one by one. `error` is ‖logits − reference‖ / ‖reference‖ and `arg max` the share
of tokens with the same most likely successor, against the artefact in ONNX Runtime at the level
that it records. By default OpenVINO may round activations to int8, which seems to depend on the
processor: its default, and what it does when it is told to round none, are both measured.
`weights` counts the types that its products of matrices read, the scores of attention included.

The claim is judged with activations as they are, for an artefact that records level 0 or 1: the
error is at most 1e-4, and as many products read codes as the graph has. The script ends with
status 3 where it does not hold.
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

from asvd_q.artefact import read_metadata
from asvd_q.exporting import ARTEFACTS
from asvd_q.metrics import agreement, relative_error
from asvd_q.opening import open_anything
from asvd_q.pipeline import run
from asvd_q.process import settle_process
from asvd_q.progress import silent
from asvd_q.recipe import load_recipe
from asvd_q.report.tables import Table
from asvd_q_exporters.onnx.save import MODEL_FILE
from benchmarks._claims import end_claim_failed
from benchmarks._decode_graph import operator_counts
from benchmarks._elsewhere import add_environment_options, interpreter, run_elsewhere
from benchmarks.common import finish

__all__ = ["Found", "Ran", "compare", "main", "run_openvino"]

_ROOT = Path(__file__).resolve().parent.parent
_REQUIREMENTS = Path(__file__).with_name("openvino-requirements.txt")

_STEPS = 16
_ROUNDING = {"as they are": 0, "by default": -1}
_CODES = ("i4", "u4", "i8", "u8")
_BOUND = 1e-4
"""Of the logits, in float32: sums in another order."""

_ROUNDED = 4
"""The level at which ONNX Runtime rounds activations."""

_RECIPE = "wren-asvd-rtn4.yaml"
_CALIBRATION = (
    "calibration.corpora=[python-docs]",
    "calibration.samples=8",
    "calibration.window=256",
)
_EXPORT = "export=[{format: onnx, operators: standard, accuracy_level: 0}]"


@dataclass(frozen=True)
class Found:
    """OpenVINO beside ONNX Runtime.

    Attributes:
        activations: what OpenVINO does to them.
        error: ‖logits − reference‖ / ‖reference‖.
        same: share of tokens with the reference's most likely successor.
        seconds: per token, one at a time.
        weights: how many products read a type.
        version: of OpenVINO.
    """

    activations: str
    error: float
    same: float
    seconds: float
    weights: dict[str, int]
    version: str


@dataclass(frozen=True)
class Ran:
    """What OpenVINO left: logits (batch, tokens, vocabulary), seconds per token, weights' types."""

    logits: Tensor
    seconds: float
    kinds: Sequence[str]
    version: str


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
        ran = run_openvino(python, artefact, ids, prompt, group, threads)
        found.append(
            Found(
                activations,
                relative_error(reference, ran.logits),
                float(agreement(reference, ran.logits).double().mean()),
                ran.seconds,
                dict(Counter(ran.kinds)),
                ran.version,
            )
        )
    return found


def run_openvino(
    python: Path, artefact: Path, ids: Tensor, prompt: int, group: int, threads: int
) -> Ran:
    """See `_openvino.py` for the group."""
    with tempfile.TemporaryDirectory() as folder:
        feeds, results = Path(folder) / "feeds.npz", Path(folder) / "results.npz"
        np.savez(feeds, ids=ids.numpy(), prompt=prompt)
        script = Path(__file__).with_name("_openvino.py")
        arguments = (artefact / "model.onnx", feeds, results, group, threads)
        run_elsewhere([python, script, *arguments], "OpenVINO")
        with np.load(results) as archive:
            kinds = [str(kind) for kind in archive["kinds"]]
            logits, seconds = torch.from_numpy(archive["logits"]), float(archive["seconds"])
            return Ran(logits, seconds, kinds, str(archive["version"]))


def _exported(folder: Path) -> Path:
    """The bundled model in standard operators."""
    settings = ("search=null", "evaluate=null", "decompose.kept_ratio=0.8", *_CALIBRATION, _EXPORT)
    recipe = load_recipe(_ROOT / "recipes" / _RECIPE, (*settings, f"output={folder}"))
    run(recipe, silent)
    return folder / ARTEFACTS / "onnx"


def _wrong(found: Sequence[Found], artefact: Path) -> str | None:
    """What does not hold, in words."""
    exact = next(one for one in found if _ROUNDING[one.activations] == 0)
    rounded = read_metadata(artefact).options["accuracy_level"] == _ROUNDED
    read = sum(exact.weights.get(kind, 0) for kind in _CODES)
    written = operator_counts(artefact / MODEL_FILE).get("DequantizeLinear", 0)
    if read < written:
        return f"{read} of {written} products read codes"
    if not rounded and exact.error > _BOUND:
        return f"logits differ by {exact.error:.1e}, more than {_BOUND:.0e}"
    return None


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artefact", type=Path, nargs="?")
    add_environment_options(parser, "OpenVINO")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    python = interpreter(options, _REQUIREMENTS)
    with tempfile.TemporaryDirectory() as folder:
        artefact = options.artefact or _exported(Path(folder) / "run")
        readme = artefact / "README.md"
        text = readme.read_text(encoding="utf-8") if readme.is_file() else str(__doc__)
        tokenizer = open_anything(artefact).tokenizer
        ids = tokenizer(text, return_tensors="pt").input_ids[:, : options.tokens]
        found = compare(python, artefact, ids, options.threads)
        wrong = _wrong(found, artefact)
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
    content = {
        "version": found[0].version,
        "tokens": ids.shape[1],
        "found": [asdict(one) for one in found],
    }
    finish(options, table, content)
    if wrong is not None:
        end_claim_failed(f"OpenVINO {found[0].version}: {wrong}")


if __name__ == "__main__":
    main()
