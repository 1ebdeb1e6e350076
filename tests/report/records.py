"""Records and run folders that tests of the report make up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from asvd_q.compression.spectra import SPECTRA_FILE, SpectraFile, layer_spectrum
from asvd_q.evaluation.proof import Proof
from asvd_q.evaluation.quality import Quality
from asvd_q.plan import QuantSpec, Slot, store_bytes
from asvd_q.records import Footprint, LayerRecord, LayerSpectrum, SourceIdentity
from asvd_q.report.resources import StageRecord
from asvd_q.report.run import ArtefactRecord, CorpusRecord, Quantity, RunRecord

__all__ = ["INT4", "artefact", "layer", "llama", "record", "run_folder", "spectra_of"]

INT4 = QuantSpec(method="gptq", bits=4, group_size=32)

_KINDS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.v_proj": (32, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}


def layer(
    name: str,
    shape: tuple[int, int] = (64, 64),
    *,
    block: int | None = 0,
    rank: int | None = None,
    spec: QuantSpec | None = INT4,
    **more: Any,
) -> LayerRecord:
    """A layer in factors where it has a rank, in one piece elsewhere."""
    slots: dict[Slot, QuantSpec | None] = (
        {"weight": spec} if rank is None else {"B": spec, "A": spec}
    )
    fields: dict[str, Any] = {
        "name": name,
        "kind": name.rsplit(".", 1)[-1],
        "block": block,
        "shape": shape,
        "form": "dense" if rank is None else "factors",
        "rank": rank,
        "reason": None,
        "quantization": slots,
        "bytes_before": 2 * shape[0] * shape[1],
        "bytes_after": 0,
        "errors": {"quantize": 0.05} if rank is None else {"decompose": 0.02, "quantize": 0.04},
    }
    made = LayerRecord(**(fields | more))
    stored = sum(
        store_bytes(matrix, made.quantization[slot], "float16")
        for slot, matrix in made.slot_shapes().items()
    )
    return made.model_copy(update={"bytes_after": stored})


def llama(blocks: int = 2, rank: int = 16, scale: int = 1) -> list[LayerRecord]:
    """Four kinds of layers in every block; the second kind stays dense."""
    return [
        layer(
            f"model.layers.{block}.{kind}",
            (out * scale, features * scale),
            block=block,
            rank=None if kind.endswith("v_proj") else rank + block,
        )
        for block in range(blocks)
        for kind, (out, features) in _KINDS.items()
    ]


def artefact(name: str = "onnx", **more: Any) -> ArtefactRecord:
    """One that was proven."""
    proof = Proof(
        layers=8,
        status="proven",
        runtime="onnxruntime",
        tokens=192,
        decode_steps=8,
        relative_error=1e-3,
        kl=2e-4,
        agreement=0.99,
    )
    fields: dict[str, Any] = {
        "name": name,
        "format": name,
        "folder": f"artefacts/{name}",
        "bytes": 1000,
        "weight_bytes": 900,
        "predicted": Footprint(weights=900, folder=1001),
        "proof": proof,
    }
    return ArtefactRecord(**(fields | more))


def record(layers: Iterable[LayerRecord] | None = None, **more: Any) -> RunRecord:
    """A run that has everything but a search."""
    found = tuple(llama() if layers is None else layers)
    before, after = (
        sum(getattr(one, f"bytes_{when}") for one in found) for when in ("before", "after")
    )
    quality = Quality(
        corpus="docs",
        split="test",
        window=64,
        windows=4,
        tokens=252,
        perplexity=10.0,
        runtime="torch",
    )
    fields: dict[str, Any] = {
        "name": "a run",
        "source": SourceIdentity(name="tiny", model_type="llama", weights_sha256="f" * 64),
        "source_path": "/models/tiny",
        "store_key": "key",
        "seed": 7,
        "device": "cpu",
        "versions": {"asvd-q": "0.1.0", "torch": "2.9"},
        "corpora": (CorpusRecord(corpus="docs", split="test", use="evaluation", sha256="e" * 64),),
        "parameters": Quantity(
            before=sum(one.shape[0] * one.shape[1] for one in found),
            after=sum(one.as_plan().parameters for one in found),
        ),
        "layer_bytes": Quantity(before=before, after=after),
        "total_bytes": Quantity(before=before + 5000, after=after + 5000),
        "stages": (StageRecord(stage="compress", seconds=2.5, peak_memory_bytes=1 << 30),),
        "layers": found,
        "dense_quality": (quality,),
        "quality": (
            quality.model_copy(update={"perplexity": 10.5, "kl": 0.0123, "agreement": 0.9}),
        ),
        "artefacts": (artefact(),),
        "warnings": (),
    }
    return RunRecord(**(fields | more))


def spectra_of(layers: Iterable[LayerRecord]) -> dict[str, LayerSpectrum]:
    """Falling singular values for every layer in factors."""
    return {
        one.name: layer_spectrum(
            torch.arange(1, min(one.shape) + 1, dtype=torch.float64) ** -1.0, one.rank
        )
        for one in layers
        if one.rank is not None
    }


def run_folder(folder: Path, run: RunRecord, search: dict[str, Any] | None = None) -> Path:
    """What a run leaves that its report reads.

    Args:
        search: content of `search.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run.write(folder)
    (folder / "recipe.yaml").write_text("version: 1\n", encoding="utf-8")
    names = [one.name for one in run.layers]
    SpectraFile(folder, run.store_key, names).add(dict(spectra_of(run.layers)))
    assert (folder / SPECTRA_FILE).is_file() == any(one.rank for one in run.layers)
    if search is not None:
        (folder / "search").mkdir()
        (folder / "search" / "search.json").write_text(json.dumps(search), encoding="utf-8")
    return folder
