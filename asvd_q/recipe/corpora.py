"""Which text the model is calibrated with and evaluated on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from asvd_q.recipe.base import Bool, Bos, Count, Number, Section, ShortSection, Text
from asvd_q.recipe.named import NAMED
from asvd_q.recipe.paths import resolve_path
from asvd_q.recipe.tasks import TaskSection, distinct_tasks

__all__ = [
    "BUILT_IN",
    "CONTEXT",
    "FILE_TYPES",
    "GENERATED",
    "CalibrationSection",
    "CorpusSection",
    "EvaluateSection",
    "Protocol",
    "file_name",
]

GENERATED = "generated"
"""Text sampled from the model itself: it has one part of its own, and only calibrates."""

BUILT_IN = ("python-docs", "python-source")
FILE_TYPES = (".txt", ".jsonl", ".json")
HUB = "hub:"
CONTEXT = "context"
"""In place of a window's length: the model's context, 2048 at most."""

Protocol = Literal["windows", "standard"]
"""How an evaluation's windows are cut."""

PLACEHOLDER = "{split}"

_HUB_NAME = re.compile(r"hub:[\w.-]+/[\w.-]+(:[\w.-]+)?")
_BUILT_IN_SPLITS = ("train", "test")
_SAMPLED = "sampled"
_FIELD = "text"


def _readable_window(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 2
    if not number and value != CONTEXT:
        raise ValueError("allowed is a whole number from 2 on, or context")
    return value


_Window = Annotated[
    Annotated[int, Field(strict=True, ge=2)] | Literal["context"], BeforeValidator(_readable_window)
]


def file_name(source: str) -> str:
    """What a corpus in a file is called: the file's name without its ending and placeholder."""
    stem = PurePath(source).stem
    return stem.replace(PLACEHOLDER, "").strip("._-") or stem


class CorpusSection(ShortSection):
    """One corpus. A plain string is short for `{source: …}`."""

    source: Text
    """generated (sampled from the model itself, in `calibration` only), python-docs,
    python-source, wikitext2, ptb or c4 (from the hub), a .txt, .jsonl or .json path (may hold
    {split}), or hub:…"""

    split: Text = "train"
    """Part of the corpus; train in `calibration`, test (of c4: validation) in `evaluate` unless
    it is given."""

    field: Text = _FIELD
    """Where the text lies in each record of a JSON file or hub data set."""

    weight: Annotated[Number, Field(gt=0)] = 1.0
    """Share of the calibration samples, relative to the other corpora's."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        value = {"source": value} if isinstance(value, str) else value
        if isinstance(value, Mapping) and value.get("source") == GENERATED:
            return {"split": _SAMPLED, **value}
        return value

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        known = (GENERATED, *BUILT_IN, *NAMED)
        if source in known or source.endswith(FILE_TYPES) or _HUB_NAME.fullmatch(source):
            return source
        close = get_close_matches(source, known, n=1)
        raise ValueError(
            "no corpus of that name"
            + (f": did you mean {close[0]!r}?" if close else ".")
            + f" Allowed: {', '.join(known)}, a path ending in {', '.join(FILE_TYPES)}, "
            "or hub:owner/name with :config where it has several"
        )

    @model_validator(mode="after")
    def _split_exists(self) -> CorpusSection:
        splits: tuple[str, ...] = _BUILT_IN_SPLITS if self.source in BUILT_IN else ()
        if self.source in NAMED:
            splits = tuple(NAMED[self.source].splits)
            if self.field != _FIELD:
                raise ValueError(f"{self.source} knows where its text lies: leave `field` out")
        if splits and self.split not in splits:
            listed = f"{', '.join(splits[:-1])} and {splits[-1]}"
            raise ValueError(f"{self.source} has the splits {listed}, not {self.split!r}")
        if self.is_generated and self.split != _SAMPLED:
            raise ValueError("generated text has no splits: leave `split` out")
        return self

    @property
    def is_generated(self) -> bool:
        """Whether the text is sampled from the model."""
        return self.source == GENERATED

    @property
    def is_file(self) -> bool:
        """Whether the source is a local file."""
        named = self.is_generated or self.source in BUILT_IN or self.source in NAMED
        return not named and not self.source.startswith(HUB)

    @property
    def path(self) -> str:
        """The source with its placeholder filled."""
        return self.source.replace(PLACEHOLDER, self.split)

    @property
    def name(self) -> str:
        """Short name in tables: the built-in's, the file's without its ending, the hub's."""
        return file_name(self.source) if self.is_file else self.source.removeprefix(HUB)

    @property
    def identity(self) -> tuple[str, str]:
        """Equal for two sections that read the same text, whatever their split is called."""
        if self.is_file:
            return (self.path, "")
        return (NAMED[self.source].hub_name if self.source in NAMED else self.source, self.split)


class _Corpora(Section):
    """What calibration and evaluation share: the corpora, as a list or as a single one."""

    corpora: Annotated[tuple[CorpusSection, ...], Field(min_length=1)]
    """The corpora; `corpus:` with a single one is the short form."""

    @model_validator(mode="before")
    @classmethod
    def _single_form(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "corpus" not in value:
            return value
        if "corpora" in value:
            raise ValueError("has both `corpus` and `corpora`: keep one of them")
        rest = {key: item for key, item in value.items() if key != "corpus"}
        return {**rest, "corpora": [value["corpus"]]}

    @field_validator("corpora", mode="before")
    @classmethod
    def _default_split(cls, value: Any) -> Any:
        if isinstance(value, str) or not isinstance(value, Sequence):
            return value
        return [_with_split(item, cls._split()) for item in value]

    @field_validator("corpora")
    @classmethod
    def _distinct(
        cls, corpora: tuple[CorpusSection, ...], info: ValidationInfo
    ) -> tuple[CorpusSection, ...]:
        seen: set[tuple[str, str]] = set()
        resolved = []
        for corpus in corpora:
            if (corpus.name, corpus.split) in seen:
                raise ValueError(
                    f"lists {corpus.name} ({corpus.split}) twice: each name and split may "
                    "appear once"
                )
            seen.add((corpus.name, corpus.split))
            if corpus.is_file:
                source = resolve_path(corpus.source, info, probe=corpus.path)
                corpus = corpus.model_copy(update={"source": source})
            resolved.append(corpus)
        return tuple(resolved)

    @classmethod
    def _split(cls) -> str:
        return "train"

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        corpora = schema["properties"]["corpora"]
        schema["properties"]["corpus"] = {
            **corpora["items"],
            "description": "Short form of `corpora` with a single corpus.",
        }
        schema["required"] = [key for key in schema.get("required", []) if key != "corpora"]
        return schema | cls._needed()

    @classmethod
    def _needed(cls) -> JsonSchemaValue:
        """What of the keys there must be, as a part of the JSON schema."""
        return {"oneOf": [{"required": ["corpora"]}, {"required": ["corpus"]}]}


class CalibrationSection(_Corpora):
    """The windows of text from which activation statistics are collected."""

    samples: Count = 32
    """Number of windows, over all corpora."""

    window: Annotated[int, Field(strict=True, ge=2)] = 512
    """Tokens per window."""

    seed: Annotated[int, Field(strict=True)] = 233
    """Of the random offsets at which windows start."""

    bos: Bos = "auto"
    """Start every window with the BOS token; auto does it when the tokenizer does."""

    batch_size: Count = 4
    """Windows per forward pass."""

    sequential: Bool = False
    """Collect a block's statistics from the compressed blocks before it, not the dense ones."""

    hidden_states: Literal["memory", "disk"] = "memory"
    """Where the inputs of the next block are kept."""

    @model_validator(mode="after")
    def _enough_samples(self) -> CalibrationSection:
        if self.samples < len(self.corpora):
            raise ValueError(
                f"samples is {self.samples} and there are {len(self.corpora)} corpora: "
                "each needs at least one window"
            )
        return self


class EvaluateSection(_Corpora):
    """The text on which perplexity is measured, from the start of each corpus, and the tasks."""

    corpora: tuple[CorpusSection, ...] = ()
    """The corpora; `corpus:` with a single one is the short form. There may be tasks instead."""

    tasks: tuple[TaskSection, ...] = ()
    """Tasks of lm-eval whose accuracy is measured: names, or paths of task files."""

    protocol: Protocol = "windows"
    """windows: as the keys below say. standard: as published perplexities are measured: windows of
    `context` tokens, all of them (of c4 the first 256), and BOS once, at the start of the text."""

    window: _Window = 512
    """Tokens per window; the loss is of all but the first. context: the model's, 2048 at most,
    which is what protocol standard takes unless it is given."""

    windows: Count | None = 64
    """Number of windows of each corpus, from its start; null takes all, as protocol standard does
    unless it is given."""

    batch_size: Count = 4
    """Windows per forward pass."""

    bos: Bos = "auto"
    """Start every window (in protocol standard: the text) with the BOS token; auto does it when
    the tokenizer does."""

    dense: Bool = True
    """Evaluate the uncompressed model on the same tokens too."""

    allow_overlap: Bool = False
    """Let calibration and evaluation read the same part of a corpus."""

    @model_validator(mode="before")
    @classmethod
    def _protocols_defaults(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("protocol") == "standard":
            return {"window": CONTEXT, "windows": None, **value}
        return value

    @field_validator("corpora")
    @classmethod
    def _held_out(cls, corpora: tuple[CorpusSection, ...]) -> tuple[CorpusSection, ...]:
        if any(corpus.is_generated for corpus in corpora):
            raise ValueError(
                "generated text is sampled from the model itself and measures nothing: it is for "
                "`calibration` only"
            )
        return corpora

    @field_validator("tasks")
    @classmethod
    def _distinct_tasks(cls, tasks: tuple[TaskSection, ...]) -> tuple[TaskSection, ...]:
        return distinct_tasks(tasks)

    @model_validator(mode="after")
    def _something_to_measure(self) -> EvaluateSection:
        if not self.corpora and not self.tasks:
            raise ValueError("names neither corpora nor tasks: there is nothing to measure")
        return self

    @classmethod
    def _split(cls) -> str:
        return "test"

    @classmethod
    def _needed(cls) -> JsonSchemaValue:
        keys = ("corpora", "corpus", "tasks")
        return {
            "anyOf": [{"required": [key]} for key in keys],
            "not": {"required": ["corpora", "corpus"]},
        }


def _with_split(item: Any, split: str) -> Any:
    source = item.get("source") if isinstance(item, Mapping) else item
    if source == GENERATED or not isinstance(item, (str, Mapping)):
        return item
    if split == "test" and isinstance(source, str) and source in NAMED:
        split = NAMED[source].test
    fields = {"source": item} if isinstance(item, str) else item
    return {"split": split, **fields}
