"""Text that every Python installation carries: its documentation, and its standard library.

Train and test parts share no topic, no paragraph of prose and no file. The text follows the
Python version; its hash goes into the run's record.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

__all__ = ["Split", "python_docs", "python_source"]

Split = Literal["train", "test"]

_TEST_EVERY = 4

# No part of these is in the training data of the demo model, tests/data/wren.
_TEST_MODULES = (
    "codecs",
    "dataclasses",
    "plistlib",
    "pty",
    "quopri",
    "subprocess",
    "asyncio/subprocess",
    "asyncio/trsock",
    "email/feedparser",
    "email/message",
    "importlib/readers",
    "urllib/robotparser",
)
_PACKAGES = (
    "asyncio",
    "collections",
    "concurrent",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
# All of it is 8 MB, which takes a tokenizer ten seconds; a quarter is plenty to sample from.
_TRAIN_EVERY = 4


def python_docs(split: Split) -> list[str]:
    """English prose: the language reference's topics that `help()` shows.

    Every fourth topic, in alphabetical order, is test. Topics quote each other, so a paragraph
    that a test topic holds is taken out of the train ones. Empty where Python comes without
    `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    parts: dict[Split, list[str]] = {"train": [], "test": []}
    for index, topic in enumerate(sorted(topics)):
        parts["test" if index % _TEST_EVERY == _TEST_EVERY - 1 else "train"].append(topics[topic])
    if split == "test":
        return parts["test"]
    held_out = {_words(paragraph) for text in parts["test"] for paragraph in _paragraphs(text)}
    kept = (
        "\n\n".join(p for p in _paragraphs(text) if _words(p) not in held_out)
        for text in parts["train"]
    )
    return [text for text in kept if text]


def python_source(split: Split) -> list[str]:
    """Source files of the standard library, sorted by path.

    Test is a fixed list of modules. Train is every fourth of the other top-level modules and of
    the files of a fixed list of packages. Files that an installation lacks are passed over.
    """
    library = Path(sysconfig.get_path("stdlib"))
    test = [library / f"{module}.py" for module in _TEST_MODULES]
    if split == "test":
        return _read(test)
    # The list of names leaves out files that belong to one machine, such as sitecustomize.
    files = [file for file in library.glob("*.py") if file.stem in sys.stdlib_module_names]
    for package in _PACKAGES:
        files += (library / package).rglob("*.py")
    train = sorted(set(files) - set(test), key=lambda file: file.relative_to(library).as_posix())
    return _read(train[::_TRAIN_EVERY])


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]


def _words(paragraph: str) -> str:
    """The paragraph whatever its indentation and line breaks."""
    return " ".join(paragraph.split())


def _read(files: Iterable[Path]) -> list[str]:
    texts = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text.strip():
            texts.append(text)
    return texts
