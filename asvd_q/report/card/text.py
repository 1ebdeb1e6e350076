"""A run's record and what an exporter knows of its format, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asvd_q.models.card import CARD_FILE, SourceCard
from asvd_q.recipe.text import dump_yaml
from asvd_q.report.card import facts
from asvd_q.report.card.header import card_header, hub_name
from asvd_q.report.markdown import fenced, markdown_table
from asvd_q.report.page.markdown import plain
from asvd_q.report.recipes import without_places
from asvd_q.report.run import ArtefactRecord, RunRecord
from asvd_q.report.tasks import task_table
from asvd_q.usage import Snippet, Usage

__all__ = ["CARD_FILE", "card_text"]

_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class _Shown:
    """A snippet as the template has it."""

    title: str
    needs: str
    note: str
    block: str


def card_text(
    record: RunRecord,
    artefact: ArtefactRecord,
    usage: Usage,
    recipe: Mapping[str, Any] | None,
    source: SourceCard,
) -> str:
    """The whole card; the same text for equal arguments.

    Args:
        record: of the run; its quality is what was measured of the store.
        artefact: already proven.
        recipe: the resolved one; None where it is gone.
        source: what the source model's own card says.
    """
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    header = ModelCardData(**card_header(record, usage, recipe, source))
    loader = PackageLoader("asvd_q.report.card", ".")
    # Markdown, so nothing is escaped; what comes from outside stands in cells and fenced blocks.
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    base = hub_name(record, recipe)
    body = environment.get_template("card.md.jinja").render(
        title=f"{record.source.name}, compressed by asvd-q: {artefact.name}",
        source=f"[{base}]({_HUB}/{base})" if base else record.source.name,
        made_of=facts.made_of(record),
        format=artefact.format,
        low_rank=any(layer.form == "factors" for layer in record.layers),
        facts=markdown_table(facts.facts_table(record, artefact, _shown(recipe))),
        quality=markdown_table(facts.quality_table(record)) if record.quality else "",
        tasks=markdown_table(task_table(record.tasks, record.dense_tasks)) if record.tasks else "",
        proof=facts.proof_rows(artefact),
        snippets=[_snippet(one) for one in usage.snippets],
        limits=[plain(line) for line in facts.limits(record, artefact)],
        record=record,
        artefact=artefact,
        packages=facts.packages(record),
        recipe=fenced(dump_yaml(_shown(recipe)), "yaml") if recipe else "",
        licence=_licence(source),
    )
    return f"---\n{header.to_yaml()}\n---\n\n{body.rstrip()}\n"


def _shown(recipe: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if recipe is None else without_places(recipe)


def _snippet(snippet: Snippet) -> _Shown:
    needs = ", ".join(f"`{package}`" for package in snippet.needs)
    return _Shown(snippet.title, needs, snippet.note, fenced(snippet.code, snippet.language))


def _licence(source: SourceCard) -> str:
    if source.license is None:
        return "The source's card names none in its header: ask there before you use this model."
    name = f" ({source.license_name})" if source.license_name else ""
    return f"{source.license}{name}, as the source's card says; this model is made of its weights."
