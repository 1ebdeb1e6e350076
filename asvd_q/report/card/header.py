"""The header of a model card.

Source: https://huggingface.co/docs/hub/model-cards. Of `base_model_relation` the hub knows
finetune, adapter, merge and quantized; where no weight is in codes none of them is true, and it is
left out. A base model, and data sets, are named only where the hub has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from asvd_q.models.card import SourceCard
from asvd_q.records import LayerRecord
from asvd_q.report.recipes import hub_corpora
from asvd_q.report.run import RunRecord
from asvd_q.usage import Usage

__all__ = ["card_header", "hub_name"]


def card_header(
    record: RunRecord, usage: Usage, recipe: Mapping[str, Any] | None, source: SourceCard
) -> dict[str, Any]:
    """Fields of the header, in the order of their names in the hub's documentation."""
    base = hub_name(record, recipe)
    header: dict[str, Any] = {
        "license": source.license,
        "license_name": source.license_name,
        "license_link": _link(source.license_link, base),
        "language": list(source.language),
        "library_name": usage.library,
        "pipeline_tag": "text-generation",
        "base_model": base,
        "base_model_relation": _relation(record, usage) if base else None,
        "datasets": hub_corpora(recipe, "calibration") if recipe else [],
        "tags": list(dict.fromkeys(_tags(record, usage))),
    }
    return {key: value for key, value in header.items() if value}


def hub_name(record: RunRecord, recipe: Mapping[str, Any] | None) -> str | None:
    """The source's name on the hub; None for a folder, whose path a resolved recipe has whole."""
    name = record.source.name
    path = (recipe or {}).get("model", {}).get("path")
    known = path == name if path is not None else "/" in name
    return name if known else None


def _relation(record: RunRecord, usage: Usage) -> str | None:
    return usage.relation or ("quantized" if any(_specs(record.layers)) else None)


def _tags(record: RunRecord, usage: Usage) -> Iterator[str]:
    yield "asvd-q"
    forms = {layer.form for layer in record.layers}
    if "factors" in forms:
        yield "asvd"
    if forms - {"dense"}:
        yield "low-rank"
    specs = list(_specs(record.layers))
    if specs:
        yield "quantized"
    yield from sorted({method for method, _ in specs})
    yield from (f"{bits}-bit" for bits in sorted({bits for _, bits in specs}))
    yield from usage.tags


def _specs(layers: tuple[LayerRecord, ...]) -> Iterator[tuple[str, int]]:
    """Method and width of every matrix in codes."""
    for layer in layers:
        for spec in layer.quantization.values():
            if spec is not None:
                yield spec.method, spec.bits


def _link(link: str | None, base: str | None) -> str | None:
    """A file of the source's is not beside this card: it is named where the hub has it."""
    if link is None or "://" in link:
        return link
    return f"https://huggingface.co/{base}/blob/main/{link.removeprefix('./')}" if base else None
