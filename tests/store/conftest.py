"""A tiny model, and a store over it with every kind of content."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.models import SourceModel
from asvd_q.store import Store
from tests.store.given import choose
from tests.support import hand_made_store, tiny_llama


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    folder = tmp_path_factory.mktemp("model")
    return SourceModel.open(str(tiny_llama(folder, hidden=32, intermediate=48)))


@pytest.fixture
def store(source: SourceModel, tmp_path: Path) -> Store:
    return hand_made_store(tmp_path / "store", source, choose)
