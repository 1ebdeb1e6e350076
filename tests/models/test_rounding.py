"""A model read in a narrower type: everything is rounded, nothing but floats."""

from __future__ import annotations

from pathlib import Path

import torch

from asvd_q.models import SourceModel
from asvd_q.store import Store
from tests.support import hand_made_store, tiny_llama


def test_tensors_are_rounded_as_they_are_read(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model")))
    rounded = source.rounded_to(torch.bfloat16)
    exact = source.tensor("model.embed_tokens.weight")
    assert exact.dtype == torch.float32
    assert torch.equal(rounded.tensor("model.embed_tokens.weight"), exact.bfloat16())
    assert rounded.identity == source.identity


def test_a_store_reads_its_source_in_its_own_type(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", dtype=torch.float16)))
    store = hand_made_store(tmp_path / "store", source, lambda name, shape: (None, None))
    header = store.header
    narrow = header.plan.model_copy(update={"float_type": "bfloat16"})
    other = Store.create(tmp_path / "narrow", header.model_copy(update={"plan": narrow}), source)
    name = "model.norm.weight"
    assert other.source.tensor(name).dtype == torch.bfloat16
    assert torch.equal(store.source.tensor(name), source.tensor(name))
