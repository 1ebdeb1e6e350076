"""The whole page. What its tables say is from the schemas; their order and titles are from here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from asvd_q.exporter_registry import available_exporters, exporter_class
from asvd_q.methods import METHODS
from asvd_q.recipe import PartialQuantSpec, Recipe
from asvd_q.recipe.quantsettings import KEYS
from asvd_q.schema_page.definitions import Definitions, definitions_in
from asvd_q.schema_page.examples import EXAMPLES, STUDY
from asvd_q.schema_page.tables import field_table, field_texts, model_text
from asvd_q.study.schema import StudySection

__all__ = ["recipe_page"]

_TITLES = {
    "CorpusSection": "A corpus",
    "FactorAware": "quantize.factors.aware",
    "Factors": "quantize.factors",
    "PartialQuantSpec": "Settings of a matrix",
    "QuantizeOverride": "quantize.overrides",
}
"""Of the models that sections hold; others go by the names of their classes."""

_HEAD = """\
# Recipe reference

Every key of a recipe. `asvd-q schema --markdown` writes this page from the schema that checks
recipes, and `asvd-q schema` prints that as JSON schema, for editors.

A recipe is one YAML file, in YAML 1.2: `1e-6` is a number, `no` is text. Unknown keys are refused.
Every stage may be left out. `--set decompose.kept_ratio=0.7` replaces a value on the command line;
a number picks an entry of a list, as in `--set export.0.dtype=float16`. Paths are looked up beside
the recipe, then in the current directory. Patterns of layers are those of `fnmatch`, for the full
name (`model.layers.0.*`) or its last part (`q_proj`).
"""

_METHODS = """\
### Defaults by method

What a method begins with; an empty cell is a setting that it does not have.
"""

_OPTIONS = """\
## Options of the formats

Keys of an entry of [`export`](#export) beside `format` and `name`, and what `asvd-q export RUN --to
FORMAT --option KEY=VALUE` takes. Packages can bring [formats of their own](exporters.md).
"""


def recipe_page() -> str:
    """The page, with the options of every exporter that is installed.

    Raises:
        ExportError: an installed exporter cannot be loaded.
    """
    found = Definitions(Recipe)
    anchors = {definition: f"[{key}](#{key})" for key, definition in found.sections.items()}
    parts = [_HEAD, _contents(found), "## The recipe", model_text(Recipe)]
    parts.append(field_table(found.schema, {}, anchors.__getitem__))
    seen: set[str] = set()
    for key in found.sections:
        parts += _section(key, found, seen)
    parts.append(_OPTIONS)
    for name in available_exporters():
        parts += _format(name, exporter_class(name).options_model)
    parts += _studies()
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _contents(found: Definitions) -> str:
    sections = " · ".join(f"[`{key}`](#{key})" for key in found.sections)
    formats = " · ".join(f"[`{name}`](#{_anchor(name)}-options)" for name in available_exporters())
    studies = "Files of `asvd-q study`: [studies](#studies)"
    return f"Sections: {sections}\n\nFormats: {formats}\n\n{studies}"


def _section(key: str, found: Definitions, seen: set[str]) -> Iterator[str]:
    """A section of the recipe, then the models that it is the first to hold."""
    definition = found.sections[key]
    yield f"## {key}"
    yield from _model(definition, found, EXAMPLES.get(key))
    for inner in found.held(definition):
        if inner not in seen:
            yield f"### {_title(inner)}"
            yield from _model(inner, found, None)
    seen.update([definition, *found.held(definition)])
    if key == "quantize":
        yield _METHODS
        yield _method_table()


def _model(definition: str, found: Definitions, example: str | None) -> Iterator[str]:
    """Text, example and keys; those that all settings of matrices have are left to their table."""
    model, schema = found.models[definition], found.schema_of(definition)
    yield model_text(model)
    if example is not None:
        yield f"```yaml\n{example}```"
    shown: Mapping[str, Any] = schema
    if issubclass(model, PartialQuantSpec) and model is not PartialQuantSpec:
        common = found.schema_of(PartialQuantSpec.__name__)["properties"]
        own = {k: v for k, v in schema["properties"].items() if common.get(k) != v}
        shown = {**schema, "properties": own}
        yield f"The keys of the {_link(PartialQuantSpec.__name__)}, and:"
    yield field_table(shown, field_texts(model), _link)


def _method_table() -> str:
    names = " | ".join(f"`{name}`" for name in METHODS)
    lines = [f"| | {names} |", "|---" * (len(METHODS) + 1) + "|"]
    for key in KEYS:
        if key != "method":
            cells = " | ".join(_cell(method.settings.get(key)) for method in METHODS.values())
            lines.append(f"| `{key}` | {cells} |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _format(name: str, options: type[BaseModel]) -> Iterator[str]:
    yield f"### {name} options"
    yield model_text(options)
    if options.model_fields:
        yield field_table(options.model_json_schema(), field_texts(options), _link)


def _studies() -> Iterator[str]:
    found = Definitions(StudySection)
    yield "## Studies"
    yield model_text(StudySection)
    yield f"```yaml\n{STUDY}```"
    yield field_table(found.schema, {}, _link)
    for definition in dict.fromkeys(definitions_in(found.schema["properties"])):
        yield f"### {_title(definition)}"
        yield from _model(definition, found, None)


def _title(definition: str) -> str:
    """Of a heading."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", definition).removesuffix(" Section")
    return _TITLES.get(definition, words.capitalize())


def _link(definition: str) -> str:
    title = _title(definition)
    words = title if "." in title else title[0].lower() + title[1:]
    return f"[{words}](#{_anchor(title)})"


def _anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
