"""The context that a configuration names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from asvd_q.models.context import context_length, context_of
from tests.support import WREN


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("gpt2", {"n_positions": 512}, 512),
        ("opt", {"max_position_embeddings": 256}, 256),
        ("mpt", {"max_seq_len": 64}, 64),
        ("bloom", {}, None),
    ],
)
def test_every_familys_word_for_it(
    kind: str, settings: dict[str, Any], expected: int | None
) -> None:
    assert context_length(AutoConfig.for_model(kind, **settings).to_dict()) == expected


def test_a_model_of_text_inside_another() -> None:
    assert context_length({"text_config": {"max_position_embeddings": 32}}) == 32


def test_folders(tmp_path: Path) -> None:
    assert context_of(WREN) == 1024
    assert context_of(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"n_positions": 9}))
    assert context_of(tmp_path) == 9
