"""Whether an artefact computes what was compressed, in every loader that opens it.

Claim: every artefact loads in all of its loaders and computes there what the store does, to the bit
or as near as the loader's own arithmetic allows.

    python -m benchmarks.parity --data DIR [--families all] [--cases NAME,…] [--json FILE]

Every compression is exported to every format that holds it, and every artefact is opened by each
of its loaders in a process of its own (`benchmarks/_loaders.py`). "+asvd_q" is the loader after the
one import that this package offers for it; in the processes of all others asvd_q cannot be
imported. Compared with the store's own Runner in float32, on the test parts of the corpora:

    error       ‖logits − reference‖ / ‖reference‖, next token known (teacher-forced)
    KL          mean over the positions, nats per token
    arg max     share of positions with the reference's most likely token
    greedy      of 64 tokens generated after each window's first 32: how many come before the first
                that is another, on average, and the share that is equal
    load        seconds, imports left out
    peak        largest resident set until it is loaded, imports included
    files       bytes on disk, and what `plan` says of them before anything is computed

transformers, peft and ONNX Runtime are told to compute in float32, GPTQModel in float16, since its
kernel takes nothing finer; the one that transformers picks for GPTQ codes computes in bfloat16 all
the same. Calibration is on 8 windows: how good the models are does not matter, only how far they
are from their own store. Random models of two blocks stand for other families; what they rank
first says little, so the table has error and KL of them alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from asvd_q.metrics import agreement, kl_divergence, relative_error
from asvd_q.models import SourceModel
from asvd_q.quantization import float_type_of
from asvd_q.report.run import versions
from asvd_q.report.tables import Table, print_table, size
from benchmarks import _loaders
from benchmarks._artefacts import CASES, Artefact, Failure, export_case, missing_package
from benchmarks._families import FAMILIES, random_tokens, save_family
from benchmarks.common import Bench, Options, known_names, parse_options, write_json

__all__ = ["Row", "main"]

_CALIBRATION_WINDOWS, _SECONDS = 8, 600
_RANDOM_WINDOWS, _RANDOM_LENGTH = 8, 96


@dataclass(frozen=True)
class Row:
    """One artefact in one loader.

    Attributes:
        loader: None where the artefact could not be made.
        failed: first line of why there are no numbers.
        greedy_before: tokens before the first that is not the reference's, mean over the windows.
        greedy_equal: share of the generated tokens that are.
        memory_before_bytes: resident set when all that could be was imported.
        layers: what computes the linear layers, class → number, where torch does.
    """

    model: str
    case: str
    format: str
    loader: str | None
    failed: str | None = None
    relative_error: float | None = None
    kl: float | None = None
    agreement: float | None = None
    greedy_before: float | None = None
    greedy_equal: float | None = None
    load_seconds: float | None = None
    first_load_seconds: float | None = None
    peak_memory_bytes: int | None = None
    memory_before_bytes: int | None = None
    layers: str | None = None
    bytes: int | None = None
    predicted_bytes: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--families",
        type=lambda text: known_names(text.replace("all", ",".join(FAMILIES)), FAMILIES),
        default=(),
        help=f"random models to add, all or of {', '.join(FAMILIES)}",
    )
    parser.add_argument("--cases", type=_case_names, default=tuple(CASES), help="names with ;")
    parser.add_argument("--windows", type=int, default=2, help="of every corpus")
    options = parse_options(__doc__ or "", parser)
    start = time.perf_counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given, random = folder / "given", folder / "random"
        for row in chain(_given_model(options, given), _random_models(options, random)):
            rows.append(row)
            if options.json is not None:
                seconds = round(time.perf_counter() - start)
                content = {"versions": versions(), "seconds": seconds}
                write_json(options.json, content | {"rows": [asdict(one) for one in rows]})
    _show(rows, options.model.name)
    print(f"{time.perf_counter() - start:.0f} s")


def _given_model(options: Namespace, folder: Path) -> Iterator[Row]:
    """Every artefact in a process of its own, so that load time and memory are its own."""
    bench = _bench(options, options.model)
    windows = torch.cat([text.tokens[: options.windows] for text in bench.texts])
    calibration = bench.calibration()[:_CALIBRATION_WINDOWS]
    for name in options.cases:
        place = folder / name.replace(" ", "-")
        made = export_case(options.model.name, bench, name, calibration, windows, place)
        for found in made:
            yield from _opened([found], windows, place)


def _random_models(options: Namespace, folder: Path) -> list[Row]:
    """All of them in one process per loader: it is imported once."""
    windows = random_tokens(_RANDOM_WINDOWS, _RANDOM_LENGTH, seed=1)
    calibration = random_tokens(_CALIBRATION_WINDOWS, _RANDOM_LENGTH, seed=2)
    made: list[Artefact | Failure] = []
    for family in options.families:
        bench = _bench(options, save_family(family, folder / family / "model"))
        for name in options.cases:
            place = folder / family / name.replace(" ", "-")
            made += export_case(family, bench, name, calibration, windows, place)
    return sorted(
        _opened(made, windows, folder),
        key=lambda row: (options.families.index(row.model), options.cases.index(row.case)),
    )


def _bench(options: Namespace, model: Path) -> Bench:
    """With unquantized matrices in the type that a run leaves them in."""
    chosen = Options(
        model=model,
        data=options.data,
        calibration=options.calibration,
        corpora=options.corpora,
        window=options.window,
        json=None,
    )
    return Bench(chosen, float_type=float_type_of(SourceModel.open(str(model)).dtype))


def _opened(made: Sequence[Artefact | Failure], windows: Tensor, folder: Path) -> Iterator[Row]:
    """Rows of what was made, those of a loader from one process."""
    for found in made:
        if isinstance(found, Failure):
            yield Row(found.model, found.case, found.format, None, failed=found.reason)
    artefacts = [found for found in made if isinstance(found, Artefact)]
    for loader in _loaders.LOADERS:
        here: list[Artefact] = []
        for artefact in artefacts:
            if loader not in artefact.loaders:
                continue
            missing = missing_package(artefact.format, loader)
            if missing is None:
                here.append(artefact)
            else:
                yield _row(artefact, loader, failed=f"left out: {missing} is not installed")
        if here:
            yield from _with_loader(loader, here, windows, folder)


def _with_loader(
    loader: str, artefacts: Sequence[Artefact], windows: Tensor, folder: Path
) -> Iterator[Row]:
    print(f"{loader}: {', '.join(f'{one.model}, {one.case}, {one.format}' for one in artefacts)}")
    tokens = folder / "tokens.npy"
    np.save(tokens, windows.numpy())
    outs = [folder / f"{loader}-{number}.npz" for number in range(len(artefacts))]
    pairs = [str(path) for pair in zip(artefacts, outs, strict=True) for path in _paths(*pair)]
    died = _run(loader, [str(tokens), *pairs], folder / "modules")
    for artefact, out in zip(artefacts, outs, strict=True):
        if not out.exists():
            yield _row(artefact, loader, failed=died or "the process left no numbers")
            continue
        with np.load(out) as found:
            if "error" in found:
                yield _row(artefact, loader, failed=str(found["error"]))
            else:
                with np.load(artefact.reference) as reference:
                    yield _row(artefact, loader, **_compared(found, reference))
        out.unlink()


def _paths(artefact: Artefact, out: Path) -> tuple[Path, Path]:
    return artefact.folder, out


def _run(loader: str, arguments: Sequence[str], modules: Path) -> str | None:
    """Run the script; returns why it ended early, if it did.

    Args:
        modules: where transformers copies the code of checkpoints to.
    """
    environment = os.environ | {
        "HF_MODULES_CACHE": str(modules),
        "GPTQMODEL_CPU_WORKERS": "2",
        # gptqmodel compiles its kernel at the first call, for half a minute; it computes the same.
        "TORCHDYNAMO_DISABLE": "1",
    }
    command = [sys.executable, "-P", _loaders.__file__, loader, *arguments]
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"not done after {_SECONDS} s"
    if ended.returncode == 0:
        return None
    lines = ended.stderr.strip().splitlines()
    return f"exit code {ended.returncode}: {lines[-1] if lines else ''}"


def _compared(found: Any, reference: Any) -> dict[str, Any]:
    """Numbers of a row from two files of `benchmarks/_loaders.py`."""
    expected, logits = (torch.from_numpy(one["logits"]) for one in (reference, found))
    equal = found["generated"] == reference["generated"]
    before = np.where(equal.all(1), equal.shape[1], equal.argmin(1))
    return {
        "relative_error": relative_error(expected, logits),
        "kl": float(kl_divergence(expected, logits).mean()),
        "agreement": float(agreement(expected, logits).double().mean()),
        "greedy_before": float(before.mean()),
        "greedy_equal": float(equal.mean()),
        "load_seconds": float(found["load_seconds"]),
        "first_load_seconds": float(found["first_load_seconds"]),
        "peak_memory_bytes": int(found["peak_memory_bytes"]),
        "memory_before_bytes": int(found["memory_before_bytes"]),
        "layers": str(found["layers"]),
    }


def _row(artefact: Artefact, loader: str, **numbers: Any) -> Row:
    return Row(
        artefact.model,
        artefact.case,
        artefact.format,
        loader,
        bytes=artefact.bytes,
        predicted_bytes=artefact.predicted_bytes,
        **numbers,
    )


def _case_names(text: str) -> tuple[str, ...]:
    """Names of cases have commas in them."""
    found = tuple(name.strip() for name in text.split(";") if name.strip())
    for name in found:
        if name not in CASES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {'; '.join(CASES)}")
    return found


def _show(rows: Sequence[Row], given: str) -> None:
    """Print the tables, and below them why rows have no numbers."""
    reasons = list(dict.fromkeys(row.failed for row in rows if row.failed is not None))
    for table in _tables(rows, given, reasons):
        print_table(Console(), table)
    for number, reason in enumerate(reasons, start=1):
        print(f"note {number}: {reason}")


def _tables(rows: Sequence[Row], given: str, reasons: Sequence[str]) -> Iterator[Table]:
    names = ("compression", "format", "loader")
    columns = ("error", "KL", "arg max", "greedy", "load", "peak", "files", "predicted")
    yield Table(
        f"{given}: artefacts against their store",
        (*names, *columns),
        tuple((*_names(row), *_cells(row, reasons)) for row in rows if row.model == given),
    )
    others = [row for row in rows if row.model != given]
    if others:
        yield Table(
            "random models of two blocks",
            ("family", *names, *columns[:2]),
            tuple((row.model, *_names(row), *_cells(row, reasons)[:2]) for row in others),
        )


def _names(row: Row) -> tuple[str, ...]:
    return row.case, row.format, row.loader or ""


def _cells(row: Row, reasons: Sequence[str]) -> tuple[str, ...]:
    if row.failed is not None:
        return (f"note {reasons.index(row.failed) + 1}", *[""] * 7)
    return (
        f"{row.relative_error:.1e}",
        f"{row.kl:.1e}",
        f"{row.agreement:.2%}",
        f"{row.greedy_before:.0f}, {row.greedy_equal:.0%}",
        f"{row.load_seconds:.2f} s",
        size(row.peak_memory_bytes or 0),
        size(row.bytes or 0),
        size(row.predicted_bytes or 0),
    )


if __name__ == "__main__":
    main()
