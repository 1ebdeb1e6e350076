"""Compares what was said of an artefact's files with the files."""

from __future__ import annotations

from pathlib import Path

from asvd_q.artefact import METADATA_FILE, Exporter
from asvd_q.plan import Plan
from asvd_q.sizes import footprint, measured_footprint, metadata_text, predict_files
from asvd_q.store import Store

__all__ = ["assert_sizes"]

WITHIN = 0.01

NODES = 4096
"""Bytes by which the nodes of an ONNX graph may differ from what was estimated."""


def assert_sizes(exporter: Exporter, store: Store, folder: Path, plan: Plan | None = None) -> None:
    """Every file is there and foreseen, all but an ONNX model and the metadata to the byte.

    Args:
        folder: what the exporter has written; gets its metadata file.
        plan: of the prediction; the store's unless it is given.
    """
    metadata = store.metadata(exporter.name, exporter.options.model_dump(mode="json"))
    (folder / METADATA_FILE).write_text(metadata_text(metadata), encoding="utf-8")
    predicted = predict_files(exporter, plan or store.plan, store.source)
    files = {**predicted.weights, **predicted.others}
    real = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert set(files) == set(real)
    for name, size in real.items():
        if not name.endswith((".onnx", ".onnx_data")) and name != METADATA_FILE:
            assert files[name] == size, name
    measured, found = measured_footprint(folder, predicted), footprint(predicted)
    assert measured.folder == sum(real.values())
    assert measured.weights == sum(real[name] for name in predicted.weights)
    estimated = any(name.endswith(".onnx") for name in predicted.weights)
    slack = NODES if estimated else 0
    assert abs(found.folder - measured.folder) <= max(WITHIN * measured.folder, slack)
    assert abs(found.weights - measured.weights) <= max(WITHIN * measured.weights, slack)
