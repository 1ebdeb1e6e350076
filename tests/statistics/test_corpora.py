"""Corpora from Python itself, from files and from the hub."""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from asvd_q.errors import CorpusError
from asvd_q.recipe import CorpusSection
from asvd_q.statistics import builtin
from asvd_q.statistics.corpora import load_corpus

BUILT_IN = ("python-docs", "python-source")


def section(source: str, **fields: Any) -> CorpusSection:
    return CorpusSection(source=source, **fields)


@pytest.mark.parametrize("source", BUILT_IN)
@pytest.mark.parametrize("split", ["train", "test"])
def test_built_in_corpora_are_there_and_the_same_every_time(source: str, split: str) -> None:
    corpus = load_corpus(section(source, split=split))
    assert corpus == load_corpus(section(source, split=split))
    assert (corpus.name, corpus.split) == (source, split)
    assert len(corpus.text) > 50_000
    assert corpus.sha256 == hashlib.sha256(corpus.text.encode()).hexdigest()


def test_docs_share_no_topic_and_no_paragraph() -> None:
    from pydoc_data.topics import topics

    train, test = builtin.python_docs("train"), builtin.python_docs("test")
    assert test == [topics[topic] for topic in sorted(topics)[3::4]]
    assert len(train) + len(test) <= len(topics)
    words = " ".join(" ".join(train).split())
    paragraphs = {" ".join(part.split()) for text in test for part in text.split("\n\n")}
    train_paragraphs = {" ".join(part.split()) for text in train for part in text.split("\n\n")}
    assert not paragraphs & train_paragraphs
    long = [paragraph for paragraph in paragraphs if len(paragraph) > 200]
    assert sum(paragraph in words for paragraph in long) == 0


def test_source_shares_no_file() -> None:
    library = Path(sysconfig.get_path("stdlib"))
    train, test = builtin.python_source("train"), builtin.python_source("test")
    assert (library / "codecs.py").read_text(encoding="utf-8") in test
    assert (library / "email" / "message.py").read_text(encoding="utf-8") in test
    assert len(test) == 12
    assert len(train) > 50
    assert not set(train) & set(test)


def test_a_stripped_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    for source in BUILT_IN:
        with pytest.raises(CorpusError, match=rf"{source} \(test\) is empty"):
            load_corpus(section(source, split="test"))
    (tmp_path / "codecs.py").write_text("x = 1")
    (tmp_path / "sitecustomize.py").write_text("y = 2")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text("z = 3")
    (tmp_path / "json" / "broken.py").write_bytes(b"\xff")
    assert load_corpus(section("python-source", split="test")).text == "x = 1"
    assert load_corpus(section("python-source", split="train")).text == "z = 3"


def test_text_files_and_the_split_in_their_name(tmp_path: Path) -> None:
    (tmp_path / "prose.train.txt").write_text("of training", encoding="utf-8-sig")
    (tmp_path / "prose.test.txt").write_text("of testing")
    source = str(tmp_path / "prose.{split}.txt")
    assert load_corpus(section(source, split="train")).text == "of training"
    test = load_corpus(section(source, split="test"))
    assert (test.name, test.split, test.text) == ("prose", "test", "of testing")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", '{"body": "one"}\n\n{"body": "two", "id": 3}\n'),
        ("c.json", '{"body": "one"}\r\n{"body": "two"}'),
        ("c.json", '[{"body": "one"},\n {"body": "two"}]'),
    ],
)
def test_json_records_are_joined_by_empty_lines(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert load_corpus(section(str(tmp_path / name), field="body")).text == "one\n\ntwo"


def test_one_pretty_printed_object_and_separators_inside_strings(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"text": "alone"}, indent=2))
    assert load_corpus(section(str(tmp_path / "c.json"))).text == "alone"
    (tmp_path / "c.jsonl").write_text('{"text": "a\u2028b"}\n{"text": "\\ud800"}', "utf-8")
    assert load_corpus(section(str(tmp_path / "c.jsonl"))).text == "a\u2028b\n\n?"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.txt", b"", "is empty"),
        ("c.txt", b" \n\t", "is empty"),
        ("c.txt", b"ok \xff", r"is not UTF-8 text \(byte 3\)"),
        ("c.jsonl", b"", "is empty"),
        ("c.jsonl", b'{"text": ""}', "is empty"),
        ("c.jsonl", b'{"text": "a"}\n{"txt": "b", "id": 1}', "line 2: no field 'text'; .*txt, id"),
        ("c.jsonl", b'\n{"text": 3}', "line 2: the field 'text' is not text"),
        ("c.jsonl", b'["a"]', "line 1: expected an object with the field 'text'"),
        ("c.jsonl", b'{"text": "a"}\n{"text":', "line 2: not JSON"),
        ("c.json", b'[{"text": "a"}, {}]', "record 1: no field 'text'"),
        ("c.json", b"[", "line 1: not JSON"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=expected) as caught:
        load_corpus(section(str(tmp_path / name)))
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"absent\.test\.txt: No such file"):
        load_corpus(section(str(tmp_path / "absent.{split}.txt"), split="test"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(CorpusError, match=r"cannot read the corpus .*folder\.txt"):
        load_corpus(section(str(tmp_path / "folder.txt")))


class FakeDataset(dict[str, list[Any]]):
    @property
    def column_names(self) -> list[str]:
        return list(self)


def test_hub_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(name: str, config: str | None, *, split: str) -> FakeDataset:
        calls.append((name, config, split))
        if name.endswith("absent"):
            raise ConnectionError("first line\nsecond line")
        return FakeDataset(text=["one", "", None, "two"], id=[1, 2, 3, 4])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = load_corpus(section("hub:owner/name:raw", split="validation"))
    assert (corpus.name, corpus.split) == ("owner/name:raw", "validation")
    assert corpus.text == "one\n\ntwo"
    load_corpus(section("hub:owner/name"))
    assert calls == [("owner/name", "raw", "validation"), ("owner/name", None, "train")]
    with pytest.raises(CorpusError, match=r"has no field 'body'; .*text, id"):
        load_corpus(section("hub:owner/name", field="body"))
    with pytest.raises(CorpusError, match="field 'id' is not text"):
        load_corpus(section("hub:owner/name", field="id"))
    with pytest.raises(CorpusError, match=r"hub:o/absent \(train\): first line second line"):
        load_corpus(section("hub:o/absent"))
