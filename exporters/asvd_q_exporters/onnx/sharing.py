"""Which corrections have the same B, so that the file holds it once and B x is computed once."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import torch

from asvd_q.quantization import StoredWeight
from asvd_q.records import LayerRecord
from asvd_q.store import Store

__all__ = ["same_factors"]


def same_factors(store: Store) -> dict[str, str]:
    """Corrected layers whose stored B is, byte for byte, that of a layer before them.

    Looked for among layers of one block whose B has the same shape and settings; nothing else is
    read, and one layer at a time.

    Returns:
        Name of the layer → name of the first one with that B.
    """
    alike: dict[object, list[LayerRecord]] = defaultdict(list)
    for record in store.records():
        if record.form == "correction":
            spec = record.quantization["B"]
            settings = None if spec is None else spec.model_dump_json()
            alike[record.block, record.slot_shapes()["B"], settings].append(record)
    found: dict[str, str] = {}
    for records in alike.values():
        first: dict[bytes, str] = {}
        for record in records if len(records) > 1 else ():
            digest = _digest(store.layer(record.name).weights["B"])
            if first.setdefault(digest, record.name) != record.name:
                found[record.name] = first[digest]
    return found


def _digest(weight: StoredWeight) -> bytes:
    digest = hashlib.sha256()
    for part, tensor in sorted(weight.tensors().items()):
        digest.update(f"{part} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
