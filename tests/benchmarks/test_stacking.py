"""The stacking benchmark: codes of other packages in place of a store's factors, and the script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asvd_q.metrics import relative_error
from asvd_q.models import SourceModel
from asvd_q.store import Store
from asvd_q_exporters.transformers import TransformersExporter
from benchmarks import stacking
from benchmarks._stacked import LLM_COMPRESSOR, STACKED, Request, over_store, weight_bytes
from tests.exporters.checkpoints import export
from tests.support import WREN, hand_made_store, tiny_llama

FACTORISED = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("stacked")
    source = SourceModel.open(str(tiny_llama(folder / "model", layers=1)))
    return hand_made_store(
        folder / "store", source, lambda name, shape: (8 if name == FACTORISED else None, None)
    )


def matrices(store: Store) -> dict[str, Tensor]:
    """As many as the store has, all of them other than its own."""
    found = {}
    for record in store.records():
        for slot, shape in record.slot_shapes().items():
            end = {"weight": "", "B": ".BLinear", "A": ".ALinear"}[slot]
            found[record.name + end] = torch.full(shape, float(len(found)))
    return found


def test_every_matrix_is_replaced(store: Store) -> None:
    weights = matrices(store)
    replaced = over_store(weights, store)
    factors = replaced(FACTORISED)
    assert factors is not None
    assert set(factors) == {"B", "A"}
    assert factors["B"] is weights[f"{FACTORISED}.BLinear"]
    assert factors["A"] is weights[f"{FACTORISED}.ALinear"]
    dense = replaced("model.layers.0.mlp.down_proj")
    assert dense is not None
    assert dense["weight"] is weights["model.layers.0.mlp.down_proj"]
    assert replaced("model.norm") is None


@pytest.mark.parametrize("left_out", [f"{FACTORISED}.ALinear", "model.layers.0.mlp.up_proj"])
def test_a_matrix_that_a_package_left_alone_is_an_error(store: Store, left_out: str) -> None:
    weights = matrices(store)
    del weights[left_out]
    with pytest.raises(ValueError, match=f"{left_out} has no codes"):
        over_store(weights, store)


def test_a_matrix_that_is_not_there_is_an_error(store: Store) -> None:
    weights = matrices(store) | {"lm_head": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="lm_head is none of the store's"):
        over_store(weights, store)


def run(place: Path, path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
    monkeypatch.setattr("benchmarks.common._SAMPLES", 4)
    own = ["--model", place / "model", "--data", place, "--window", 24, "--json", path]
    corpora = ["--calibration", "notes", "--corpora", "lines", "--kept", "0.7"]
    monkeypatch.setattr("sys.argv", list(map(str, ["stacking", *own, *corpora, *more])))
    stacking.main()
    return {row["model"]: row for row in json.loads(path.read_text())}


def test_the_script(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stacking, "_RANK_MULTIPLE", 2)
    packages = f"bitsandbytes NF4,{LLM_COMPRESSOR}"
    found = run(place, tmp_path / "rows.json", monkeypatch, "--packages", packages)
    assert list(found) == [
        "dense",
        "ASVD 0.7",
        "ASVD 0.7 + NF4",
        "ASVD 0.7 + GPTQ 4",
        "ASVD 0.7, then bitsandbytes NF4",
    ]
    assert found["ASVD 0.7"]["disk_bytes"] < found["dense"]["disk_bytes"]
    assert found["ASVD 0.7 + GPTQ 4"]["disk_bytes"] is None  # sides of 48 fill no words
    stacked = found["ASVD 0.7, then bitsandbytes NF4"]
    assert stacked["disk_bytes"] < found["ASVD 0.7"]["disk_bytes"]
    assert stacked["perplexity"]["lines"] == pytest.approx(
        found["ASVD 0.7 + NF4"]["perplexity"]["lines"], rel=0.2
    )
    printed = capsys.readouterr()
    assert "left out" in printed.err
    assert "–" in printed.out


@pytest.mark.slow
@pytest.mark.parametrize("package", ["gptqmodel GPTQ 4", "optimum GPTQ 4"])
def test_what_packages_save_stands_for_the_factors(tmp_path: Path, package: str) -> None:
    """Their whole pipelines; codes read back with a zero point off by one would be far off."""
    model = tiny_llama(tmp_path / "model", vocabulary=8192)
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, model)
    source = SourceModel.open(str(model))
    factorised = ("q_proj", "gate_proj")
    store = hand_made_store(
        tmp_path / "store",
        source,
        lambda name, shape: (32 if name.endswith(factorised) else None, None),
    )
    checkpoint = export(TransformersExporter(), store, tmp_path / "factors")
    generator = torch.Generator().manual_seed(1)
    texts = [
        {"input_ids": ids, "attention_mask": [1] * len(ids)}
        for ids in torch.randint(3, 8000, (8, 48), generator=generator).tolist()
    ]
    (tmp_path / "codes").mkdir()
    found = STACKED[package](Request(checkpoint, tmp_path / "codes", texts, group_size=32))
    replaced = over_store(found, store)  # all matrices of it and no others
    for record in store.records():
        dense = {"weight": source.tensor(f"{record.name}.weight")}
        floats, codes = store.replaced(record.name) or dense, replaced(record.name)
        assert codes is not None
        for slot, matrix in floats.items():
            error = relative_error(matrix.float(), codes[slot])
            assert 0.01 < error < 0.25, (record.name, slot)
    assert weight_bytes(tmp_path / "codes") < weight_bytes(checkpoint)
