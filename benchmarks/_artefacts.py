"""What the parity benchmark compresses, exports, and opens in each loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asvd_q.artefact import METADATA_FILE, Exporter, Runner
from asvd_q.errors import AsvdQError, first_line
from asvd_q.evaluation.runners import model_runner
from asvd_q.exporter_registry import available_exporters
from asvd_q.exporting import ARTEFACTS, export_store, make_exporter
from asvd_q.sizes import predict_files
from asvd_q.store import Store
from benchmarks._compressions import BASE, merged
from benchmarks._loaders import OURS, greedy
from benchmarks.common import BATCH, Bench

__all__ = ["CASES", "Artefact", "Case", "Failure", "export_case", "missing_package"]

_KEPT = {"decompose": {**BASE["decompose"], "kept_ratio": 0.8}}
_FLOAT_CORRECTION = [{"match": "*", "slot": slot, "skip": True} for slot in ("A", "B")]
_PROOF = 2, 96
"""Windows and tokens of each that an export is proven on."""


def _codes(**settings: Any) -> dict[str, Any]:
    return {"quantize": {**BASE["quantize"], "method": "gptq", "bits": 4, **settings}}


@dataclass(frozen=True)
class Case:
    """A compression, and the formats that hold it.

    Attributes:
        sections: of its recipe.
        formats: with the options of each.
    """

    sections: Mapping[str, Any]
    formats: Mapping[str, Mapping[str, Any]]


CASES = {
    "ASVD": Case(_KEPT, {"transformers": {}, "onnx": {}}),
    "ASVD + RTN 8": Case(
        _KEPT | {"quantize": {"method": "rtn", "bits": 8, "group_size": 32}},
        {"gptq": {}, "compressed-tensors": {}, "onnx": {}},
    ),
    "ASVD + GPTQ 4": Case(
        _KEPT | _codes(refit=False), {"gptq": {}, "compressed-tensors": {}, "onnx": {}}
    ),
    "ASVD + GPTQ 4, 8": Case(
        _KEPT | _codes(refit=False, factors={"A": {"bits": 8}}),
        {"gptq": {"loader": "gptqmodel"}, "compressed-tensors": {}, "onnx": {}},
    ),
    "ASVD + NF4": Case(
        _KEPT | {"quantize": {"method": "nf4", "group_size": 32}},
        {"bitsandbytes": {}, "onnx": {}},
    ),
    "GPTQ 4 asymmetric": Case(_codes(symmetric=False), {"gptq": {}, "onnx": {}}),
    "GPTQ 3 + correction": Case(
        _codes(bits=3, overrides=_FLOAT_CORRECTION) | {"correct": {"rank": 32}},
        {"peft": {}, "onnx": {}},
    ),
}
"""By what the table calls them; groups are of 32, so that they fit a small model.

"4, 8" has B in 4 bits and A in 8.
"""

_PACKAGES = {
    "onnxruntime-genai": ("onnxruntime_genai",),
    "gptqmodel": ("gptqmodel",),
    "peft": ("peft", "gptqmodel", "optimum"),
    "gptq": ("gptqmodel", "optimum"),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",),
}
"""Needed by a loader or for a format, whichever bears the name."""


@dataclass(frozen=True)
class Artefact:
    """One that was exported and proven.

    Attributes:
        model, case, format: whose, which.
        reference: file with the store's own logits and greedy tokens, float32 on the CPU.
        bytes: of its files, without the metadata that is the same in every format.
        predicted_bytes: the same, said from the plan before there is a store.
        loaders: that open it.
    """

    model: str
    case: str
    format: str
    folder: Path = field(repr=False)
    reference: Path = field(repr=False)
    bytes: int
    predicted_bytes: int
    loaders: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """An artefact that could not be made, and why."""

    model: str
    case: str
    format: str
    reason: str


def export_case(
    model: str,
    bench: Bench,
    name: str,
    calibration: Tensor,
    windows: Tensor,
    folder: Path,
) -> Iterator[Artefact | Failure]:
    """Compress once, and export to every format of the case.

    Args:
        model: what the table calls it.
        calibration, windows: int64 (windows, tokens); the second for the reference.
        folder: of the store, the reference and the artefacts.
    """
    case = CASES[name]
    calibrated = {"calibration": BASE["calibration"]}
    try:
        store = bench.compress(merged(case.sections, calibrated), folder / "store", calibration)
        reference = folder / "reference.npz"
        runner = model_runner(store.source, store.replaced, stream=False)
        np.savez(reference, **_computed(runner, windows))
    except AsvdQError as error:
        yield from (Failure(model, name, target, first_line(error)) for target in case.formats)
        return
    rows, tokens = _PROOF
    for target, options in case.formats.items():
        if target not in available_exporters():
            yield Failure(model, name, target, "left out: no such exporter is installed")
            continue
        try:
            exporter = make_exporter(target, options, where="options", file="parity")
            record = export_store(
                store,
                exporter,
                name=target,
                run_folder=folder,
                tokens=windows[:rows, :tokens],
                options=options,
            )
        except AsvdQError as error:
            yield Failure(model, name, target, first_line(error))
            continue
        artefact = folder / ARTEFACTS / target
        yield Artefact(
            model=model,
            case=name,
            format=target,
            folder=artefact,
            reference=reference,
            bytes=record.bytes - (artefact / METADATA_FILE).stat().st_size,
            predicted_bytes=_predicted(exporter, store),
            loaders=_loaders(target, options, factors=bool(store.finished_plan.ranks)),
        )


def missing_package(format: str, loader: str) -> str | None:
    """The first package that a loader would need for a format and that is not installed."""
    needed = _PACKAGES.get(loader.removesuffix(OURS), ()) + _PACKAGES.get(format, ())
    return next((package for package in needed if find_spec(package) is None), None)


def _loaders(format: str, options: Mapping[str, Any], *, factors: bool) -> tuple[str, ...]:
    """Those that a format is made for; without factors our own import changes nothing."""
    if format == "onnx":
        return "onnxruntime", "onnxruntime-genai"
    if format == "peft":
        return ("peft",)
    gptqmodel = f"gptqmodel{OURS}" if factors else "gptqmodel"
    if options.get("loader") == "gptqmodel":
        return (gptqmodel,)
    found = ("transformers", f"transformers{OURS}") if factors else ("transformers",)
    return (*found, gptqmodel) if format == "gptq" else found


def _predicted(exporter: Exporter, store: Store) -> int:
    files = predict_files(exporter, store.finished_plan, store.source)
    found = {**files.weights, **files.others}
    return sum(size for name, size in found.items() if name != METADATA_FILE)


def _computed(runner: Runner, windows: Tensor) -> dict[str, Any]:
    """What `_loaders` writes of an artefact, of a Runner."""

    def step(ids: Any, cache: Any) -> tuple[Any, Any]:
        logits, cache = runner.forward(torch.from_numpy(ids), cache)
        return logits.numpy(), cache

    return {
        "logits": torch.cat(list(runner.score(torch.split(windows, BATCH)))).numpy(),
        "generated": greedy(step, windows.numpy()),
    }
