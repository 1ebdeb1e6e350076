"""What an artefact says of itself: in its folder, and in the graph where that is alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
import torch

from asvd_q.artefact import METADATA_FILE
from asvd_q.errors import ArtefactError
from asvd_q_exporters.onnx.keys import MERGED_KEY, METADATA_KEY
from tests.exporters.onnx.conftest import Export
from tests.exporters.onnx.reference import reference_logits, relative, tokens


@pytest.fixture
def alone(standard: Export, tmp_path: Path) -> Path:
    """A folder of nothing but the graph, of which the runtime's own level would be 4."""
    shutil.copy(standard.folder / "model.onnx", tmp_path / "model.onnx")
    return tmp_path


def test_the_level_is_that_of_the_graph(standard: Export, alone: Path) -> None:
    ids = tokens(1, 12)
    found = standard.exporter.open(alone).forward(ids)[0]
    assert relative(found, reference_logits(standard.store, ids)) < 1e-5


def test_a_graph_that_says_nothing_runs_at_the_runtimes_own_level(
    standard: Export, alone: Path
) -> None:
    model = onnx.load(alone / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, alone / "model.onnx")
    ids = tokens(2, 9)
    found, _ = standard.exporter.open(alone).forward(ids)
    assert relative(found, reference_logits(standard.store, ids)) > 4e-3


def test_the_matrices_are_those_of_the_graph(standard: Export, alone: Path) -> None:
    assert [name for name, _ in standard.exporter.read(alone)] == [
        record.name for record in standard.store.records()
    ]


@pytest.mark.parametrize("key", [METADATA_KEY, MERGED_KEY])
def test_damage_in_the_graph_is_named(key: str, standard: Export, alone: Path) -> None:
    model = onnx.load(alone / "model.onnx")
    kept = [entry for entry in model.metadata_props if entry.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=key, value="{")])
    onnx.save(model, alone / "model.onnx")
    with pytest.raises(ArtefactError, match=r"model\.onnx.* damaged.*export it again"):
        list(standard.exporter.read(alone))


def test_damage_in_the_folder_is_named(standard: Export, alone: Path) -> None:
    (alone / METADATA_FILE).write_text("{")
    with pytest.raises(ArtefactError, match=rf"^\S*{METADATA_FILE} is damaged"):
        standard.exporter.open(alone)


def test_tokens_and_masks_of_any_integers(standard: Export) -> None:
    ids, runner = tokens(2, 6), standard.exporter.open(standard.folder)
    mask = torch.ones_like(ids)
    expected = runner.forward(ids, attention_mask=mask)[0]
    assert torch.equal(runner.forward(ids.int(), attention_mask=mask.bool())[0], expected)
