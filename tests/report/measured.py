"""Run records made by hand, to be compared and to be told on a card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asvd_q.evaluation.proof import Proof
from asvd_q.evaluation.quality import Quality
from asvd_q.evaluation.tasks.record import TaskMetric, TaskResult
from asvd_q.plan import QuantSpec
from asvd_q.records import Footprint, LayerRecord, SourceIdentity
from asvd_q.report.resources import StageRecord
from asvd_q.report.run import ArtefactRecord, CorpusRecord, Quantity, RunRecord

__all__ = ["artefact", "layer", "quality", "record", "task"]

PROOF = Proof(
    layers=2,
    status="proven",
    runtime="onnxruntime 1.31.1 CPU",
    tokens=128,
    decode_steps=8,
    relative_error=1.25e-2,
    kl=8e-4,
    agreement=0.984375,
)


def layer(name: str, rank: int | None, spec: QuantSpec | None, **fields: Any) -> LayerRecord:
    """A layer of 64 × 64, in factors where it has a rank."""
    slots: dict[Any, QuantSpec | None] = (
        {"weight": spec} if rank is None else {"B": spec, "A": spec}
    )
    given: dict[str, Any] = {
        "name": name,
        "kind": name.rsplit(".", 1)[-1],
        "block": 0,
        "shape": (64, 64),
        "form": "dense" if rank is None else "factors",
        "rank": rank,
        "reason": None,
        "quantization": slots,
        "bytes_before": 8192,
        "bytes_after": 2048,
        "errors": {},
    }
    return LayerRecord.model_validate(given | fields)


def artefact(name: str = "onnx", format: str = "onnx", **fields: Any) -> ArtefactRecord:
    """A proven one of 5000 bytes."""
    given: dict[str, Any] = {
        "name": name,
        "format": format,
        "folder": f"artefacts/{name}",
        "bytes": 5000,
        "weight_bytes": 4000,
        "predicted": Footprint(weights=4000, folder=5000),
        "proof": PROOF,
    }
    return ArtefactRecord.model_validate(given | fields)


def quality(corpus: str, perplexity: float, **fields: Any) -> Quality:
    """On the test part, 4 windows of 64 tokens."""
    given: dict[str, Any] = {
        "corpus": corpus,
        "split": "test",
        "window": 64,
        "windows": 4,
        "tokens": 252,
        "perplexity": perplexity,
        "runtime": "torch 2.13.0",
    }
    return Quality.model_validate(given | fields)


def task(accuracy: float, **fields: Any) -> TaskResult:
    """Ten questions with two examples before each."""
    given: dict[str, Any] = {
        "task": "quiz",
        "version": "1",
        "shots": 2,
        "samples": 10,
        "sha256": "questions",
        "metrics": {"acc": TaskMetric(value=accuracy, error=0.1)},
        "runtime": "torch",
    }
    return TaskResult.model_validate(given | fields)


def record(
    dense: dict[str, float] | None = None,
    compressed: Sequence[Quality] = (),
    *,
    hashes: dict[str, str] | None = None,
    weights: str = "a" * 64,
    total: int = 60_000,
    **fields: Any,
) -> RunRecord:
    """Two layers, one of them in factors of 4-bit codes.

    Args:
        dense: perplexity of the dense model by corpus, as the compressed one is measured.
        hashes: of the texts by corpus; the corpus's name unless it is given.
        weights: hash of the model's.
        total: bytes of the whole model afterwards.
    """
    texts = {one.corpus: one for one in compressed}
    known = {corpus: corpus for corpus in texts} | (hashes or {})
    given: dict[str, Any] = {
        "name": "small",
        "source": SourceIdentity(name="wren", model_type="llama", weights_sha256=weights),
        "source_path": "/home/somebody/models/wren",
        "store_key": "key",
        "seed": 0,
        "device": "cpu",
        "versions": {"asvd-q": "0.1.0", "python": "3.11.7", "gptqmodel": "not installed"},
        "corpora": tuple(
            CorpusRecord(corpus=name, split="test", use="evaluation", sha256=text)
            for name, text in known.items()
        ),
        "parameters": Quantity(before=8192, after=6144),
        "layer_bytes": Quantity(before=16_384, after=4096),
        "total_bytes": Quantity(before=100_000, after=total),
        "stages": (
            StageRecord(stage="compress", seconds=2.5, peak_memory_bytes=1 << 20),
            StageRecord(stage="evaluate", seconds=1.25, peak_memory_bytes=3 << 20),
        ),
        "layers": (
            layer("model.layers.0.mlp.up_proj", 16, QuantSpec(bits=4, group_size=32)),
            layer("model.layers.0.mlp.down_proj", None, None),
        ),
        "dense_quality": tuple(
            texts[name].model_copy(update={"perplexity": value, "kl": None, "agreement": None})
            for name, value in (dense or {}).items()
        ),
        "quality": tuple(compressed),
    }
    return RunRecord.model_validate(given | fields)
