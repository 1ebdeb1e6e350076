"""The field's corpora, read from data sets of the hub's layout that are made on the spot."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asvd_q.errors import CorpusError
from asvd_q.recipe import CorpusSection
from asvd_q.recipe.named import NAMED
from asvd_q.statistics.corpora import load_corpus

CARD = """---
configs:
- config_name: wikitext-103-raw-v1
  data_files:
  - split: test
    path: wikitext-103-raw-v1/test-*
- config_name: wikitext-2-raw-v1
  data_files:
  - split: test
    path: wikitext-2-raw-v1/test-*
  - split: train
    path: wikitext-2-raw-v1/train-*
---
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which every named corpus has its data set."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, known in NAMED.items():
        local = dataclasses.replace(known, path=str(tmp_path / name))
        monkeypatch.setitem(NAMED, name, local)  # type: ignore[arg-type]
    return tmp_path


def parquet(file: Path, column: str, texts: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts}), file)


def read(source: str, split: str) -> str:
    return load_corpus(CorpusSection(source=source, split=split)).text


def test_wikitext2_keeps_its_empty_lines(hub: Path) -> None:
    test = ["", " = Robert = \n", "", " Robert is \u2013 \n"]
    folder = hub / "wikitext2"
    parquet(folder / "wikitext-2-raw-v1/test-00000-of-00001.parquet", "text", test)
    parquet(folder / "wikitext-2-raw-v1/train-00000-of-00001.parquet", "text", ["of training"])
    parquet(folder / "wikitext-103-raw-v1/test-00000-of-00001.parquet", "text", ["another"])
    (folder / "README.md").write_text(CARD)
    assert read("wikitext2", "test").encode() == (
        b"\n\n = Robert = \n\n\n\n\n Robert is \xe2\x80\x93 \n"
    )
    assert read("wikitext2", "train") == "of training"


def test_ptb_is_one_line(hub: Path) -> None:
    for split in ("train", "validation", "test"):
        parquet(hub / f"ptb/penn_treebank/{split}/0000.parquet", "sentence", ["no it", split])
    for split in ("train", "validation", "test"):
        assert read("ptb", split) == f"no it {split}"


def test_c4_is_the_beginning_of_a_file(hub: Path) -> None:
    for split, shard, count in (
        ("validation", "00000-of-00008", 1103),
        ("train", "00000-of-01024", 10_002),
    ):
        file = hub / f"c4/en/c4-{split}.{shard}.json.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = ({"text": f"{split}\n{index}", "url": "x"} for index in range(count))
        with gzip.open(file, "wt") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    expected = " ".join(f"validation\n{index}" for index in range(1100))
    assert read("c4", "validation") == expected
    assert read("c4", "train").endswith(" train\n9999")


def test_ptb_comes_from_the_hubs_own_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(path: str, **settings: object) -> dict[str, list[str]]:
        calls.append((path, settings["revision"], settings["split"]))
        return {"sentence": ["a", "b"]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("ptb", "test") == "a b"
    assert calls == [("ptb-text-only/ptb_text_only", "refs/convert/parquet", "test")]


@pytest.mark.parametrize("name", list(NAMED))
def test_without_a_network_one_line_says_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def load_dataset(*arguments: object, **settings: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(CorpusError, match=r"as a local \.txt file") as caught:
        read(name, NAMED[name].test)
    message = str(caught.value)
    assert name in message
    assert NAMED[name].path in message
    assert "Couldn't reach the Hub (offline)" in message
