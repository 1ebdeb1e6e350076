"""Which matrix occupies how many bytes of an ONNX file, also where it holds several as one."""

from __future__ import annotations

import json
from collections import Counter

import onnx

__all__ = ["matrix_bytes"]


def matrix_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes by the matrix's name, biases left out."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    merged = json.loads(properties.get("asvd_q.merged", "{}"))
    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        name, _, part = tensor.name.rpartition(".")
        nbytes = len(tensor.raw_data)
        if part == "bias":
            continue
        members = merged.get(name, {name: [0, 1]})
        rows = sum(last - first for first, last in members.values())
        for member, (first, last) in members.items():
            sizes[member] += nbytes * (last - first) // rows
    return dict(sizes)
