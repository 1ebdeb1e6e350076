"""One artefact in a run folder: its card comes last, with it or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from asvd_q.artefact import read_metadata
from asvd_q.exporting import export_store
from asvd_q.files import folder_bytes
from asvd_q.models import SourceModel
from asvd_q.report.run import ArtefactRecord
from asvd_q.store import Store
from asvd_q_exporters.transformers import TransformersExporter
from tests.report.measured import record
from tests.support import hand_made_store, tiny_llama

TOKENS = torch.arange(24).reshape(1, 24) * 5 % 97


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Of a model whose own card names a licence."""
    folder = tmp_path_factory.mktemp("store")
    model = tiny_llama(folder / "model", layers=1)
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Theirs\n", encoding="utf-8")
    return hand_made_store(
        folder / "store", SourceModel.open(str(model)), lambda name, _: (16, None)
    )


def export(store: Store, run_folder: Path) -> ArtefactRecord:
    return export_store(
        store,
        TransformersExporter(),
        name="small",
        run_folder=run_folder,
        tokens=TOKENS,
        options={},
        run=record(),
    )


def test_the_card_is_ours_and_in_no_footprint(store: Store, tmp_path: Path) -> None:
    made = export(store, tmp_path)
    folder = tmp_path / made.folder
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "transformers"
    assert "# Theirs" not in card.text
    assert f"({made.bytes} bytes)" in card.text
    assert made.bytes == folder_bytes(folder) - (folder / "README.md").stat().st_size
    assert made.predicted.weights == made.weight_bytes
    assert made.options == read_metadata(folder).options
    assert made.options == TransformersExporter().options.model_dump()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    export(store, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_card_of_the_exporters_own_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = TransformersExporter.write

    def with_card(self: TransformersExporter, store: Store, folder: Path) -> None:
        write(self, store, folder)
        (folder / "README.md").write_text("its own", encoding="utf-8")

    monkeypatch.setattr(TransformersExporter, "write", with_card)
    made = export(store, tmp_path)
    assert (tmp_path / made.folder / "README.md").read_text(encoding="utf-8") == "its own"
    assert made.bytes == folder_bytes(tmp_path / made.folder)


def test_without_its_card_an_artefact_gets_no_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> str:
        raise OSError("no space")

    monkeypatch.setattr("asvd_q.report.card.card_text", fail)
    with pytest.raises(Exception, match="no space"):
        export(store, tmp_path)
    assert not list((tmp_path / "artefacts").iterdir())
