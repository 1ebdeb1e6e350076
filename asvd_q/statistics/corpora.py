"""Corpora: built in, from files, from the hub. Each becomes one string of text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from asvd_q.errors import CorpusError
from asvd_q.recipe.corpora import BUILT_IN, HUB, CorpusSection
from asvd_q.recipe.named import NAMED, NamedCorpus
from asvd_q.statistics.builtin import Split, python_docs, python_source

__all__ = ["Corpus", "load_corpus"]

_BETWEEN_DOCUMENTS = "\n\n"


@dataclass(frozen=True)
class Corpus:
    """One part of a corpus.

    Attributes:
        name: short name for tables and records.
        split: which part.
        text: its documents, joined by empty lines, or as `asvd_q.recipe.named` says.
        sha256: of the text in UTF-8, as hexadecimal.
    """

    name: str
    split: str
    text: str
    sha256: str


def load_corpus(section: CorpusSection) -> Corpus:
    """Read one corpus whole.

    Raises:
        CorpusError: no such file or data set, not readable, a record without the field, or no
            text in it.
    """
    between = _BETWEEN_DOCUMENTS
    if section.source in BUILT_IN:
        documents = _built_in(section)
    elif section.source in NAMED:
        between = NAMED[section.source].between
        documents = _of_name(section, NAMED[section.source])
    elif section.source.startswith(HUB):
        documents = _from_hub(section)
    else:
        documents = _from_file(section)
    # A lone surrogate, which JSON can spell, has no UTF-8 and no tokenizer takes it.
    text = between.join(documents).encode("utf-8", "replace").decode()
    if not text.strip():
        raise CorpusError(f"the corpus {_named(section)} is empty")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Corpus(name=section.name, split=section.split, text=text, sha256=digest)


def _named(section: CorpusSection) -> str:
    return section.path if section.is_file else f"{section.source} ({section.split})"


def _built_in(section: CorpusSection) -> list[str]:
    split = cast(Split, section.split)
    return python_docs(split) if section.source == "python-docs" else python_source(split)


def _from_file(section: CorpusSection) -> list[str]:
    path = Path(section.path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"the corpus {path} is not UTF-8 text (byte {error.start}): convert it first"
        ) from None
    except OSError as error:
        raise CorpusError(f"cannot read the corpus {path}: {error.strerror or error}") from None
    if path.suffix == ".txt":
        return [content]
    return [
        _text_of(record, f"{path}, {place}", section.field)
        for place, record in _records(content, path)
    ]


def _records(content: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Every record with where it stands: of a JSON array, of one object, or line by line."""
    if path.suffix == ".json":
        try:
            whole = json.loads(content)
        except ValueError:
            pass  # JSON lines in a file called .json
        else:
            records = whole if isinstance(whole, list) else [whole]
            yield from ((f"record {index}", record) for index, record in enumerate(records))
            return
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{path}, line {number}: not JSON: {error}") from None


def _text_of(record: Any, place: str, field: str) -> str:
    if not isinstance(record, dict):
        raise CorpusError(f"{place}: expected an object with the field {field!r}")
    if field not in record:
        keys = ", ".join(map(str, record)) or "none"
        raise CorpusError(f"{place}: no field {field!r}; set `field` to one of: {keys}")
    text = record[field]
    if not isinstance(text, str):
        raise CorpusError(f"{place}: the field {field!r} is not text")
    return text


def _of_name(section: CorpusSection, known: NamedCorpus) -> list[str]:
    """Every record's text, empty ones too."""
    from datasets import load_dataset

    most = known.splits[section.split]
    settings: dict[str, Any] = {"revision": known.revision}
    if known.files is None:
        settings["name"] = known.config
    else:
        # The data set's own account of itself is of more files than this one.
        settings["data_files"] = {section.split: known.files[section.split]}
        settings["verification_mode"] = "no_checks"
    try:
        records = load_dataset(
            known.path, split=section.split + ("" if most is None else f"[:{most}]"), **settings
        )
    except Exception as error:  # the client raises many unrelated kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorpusError(
            f"cannot load the corpus {_named(section)} from the hub, {known.path}: {reason}; "
            "where there is no network, give its text as a local .txt file instead of its name"
        ) from error
    return list(records[known.field])


def _from_hub(section: CorpusSection) -> list[str]:
    from datasets import load_dataset

    name, _, config = section.source.removeprefix(HUB).partition(":")
    try:
        records = load_dataset(name, config or None, split=section.split)
    except Exception as error:  # the client raises many unrelated kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorpusError(f"cannot load the corpus {_named(section)}: {reason}") from error
    if section.field not in records.column_names:
        raise CorpusError(
            f"the corpus {_named(section)} has no field {section.field!r}; set `field` to one of: "
            f"{', '.join(records.column_names)}"
        )
    texts: list[Any] = list(records[section.field])
    if not all(isinstance(text, str) for text in texts if text is not None):
        raise CorpusError(f"the corpus {_named(section)}: the field {section.field!r} is not text")
    return [text for text in texts if text]
