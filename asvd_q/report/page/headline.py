"""The few numbers and the sentence that a report begins with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from asvd_q.records import LayerRecord
from asvd_q.report.page.words import from_to
from asvd_q.report.run import ArtefactRecord, RunRecord

__all__ = ["Headline", "headlines", "summary"]


@dataclass(frozen=True)
class Headline:
    """A number, what it is of, and what it comes from."""

    label: str
    value: str
    detail: str = ""


def headlines(record: RunRecord) -> tuple[Headline, ...]:
    """Bytes, ratio and bits, then what they cost in quality, then what was proven."""
    total, layers = record.total_bytes, record.layer_bytes
    return (
        Headline(
            "whole model",
            from_to(total.before, total.after),
            f"{total.ratio:.1%} of the bytes, as a store counts them",
        ),
        Headline(
            "compressed layers",
            from_to(layers.before, layers.after),
            f"{layers.ratio:.1%} of their bytes",
        ),
        Headline(
            "bits per weight", f"{record.bits_per_weight:.2f}", "of these layers, scales and all"
        ),
        Headline(
            "kept ratio",
            f"{record.parameters.ratio:.3f}",
            "parameters of these layers, after / before",
        ),
        *_perplexities(record),
        *_divergence(record),
        *_proofs(record.artefacts),
    )


def summary(record: RunRecord) -> str:
    """What became of the layers, and into which formats they went."""
    forms = Counter(_form(layer) for layer in record.layers)
    words = f"{len(record.layers)} layers: " + ", ".join(
        f"{forms[form]} {form}"
        for form in ("in factors", "in codes with a correction", "in codes", "as they were")
        if forms[form]
    )
    specs = [spec for layer in record.layers for spec in layer.quantization.values() if spec]
    if specs:
        methods = " and ".join(sorted({spec.method for spec in specs}))
        groups = _range(spec.group_size for spec in specs if spec.group_size > 0)
        widths = _range(spec.bits for spec in specs)
        words += f". Codes of {widths} bits ({methods}{f', groups of {groups}' if groups else ''})"
    if record.artefacts:
        names = " and ".join(dict.fromkeys(artefact.format for artefact in record.artefacts))
        words += f". Exported to {names}"
    return words + "."


def _perplexities(record: RunRecord) -> Iterator[Headline]:
    for assessed in record.assessed:
        one, before = assessed.quality, assessed.dense
        label = f"perplexity, {one.corpus}"
        if before is None:
            yield Headline(label, f"{one.perplexity:.2f}", f"{one.split} part, {one.tokens} tokens")
        else:
            yield Headline(
                label,
                f"{assessed.change:+.2%}",
                f"{before.perplexity:.2f} → {one.perplexity:.2f}",
            )


def _divergence(record: RunRecord) -> Iterator[Headline]:
    """Mean over all tokens of all corpora."""
    known = [one for one in record.quality if one.kl is not None and one.agreement is not None]
    tokens = sum(one.window * one.windows for one in known)
    if tokens:
        kl = sum((one.kl or 0.0) * one.window * one.windows for one in known) / tokens
        same = sum((one.agreement or 0.0) * one.window * one.windows for one in known) / tokens
        yield Headline(
            "KL divergence", f"{kl:.4f}", f"nats per token; {same:.1%} the same likeliest token"
        )


def _proofs(artefacts: Iterable[ArtefactRecord]) -> Iterator[Headline]:
    found = tuple(artefacts)
    if found:
        proven = [one.name for one in found if one.proof.status == "proven"]
        yield Headline(
            "artefacts proven", f"{len(proven)} of {len(found)}", ", ".join(proven) or "none ran"
        )


def _form(layer: LayerRecord) -> str:
    if layer.form == "factors":
        return "in factors"
    if layer.form == "correction":
        return "in codes with a correction"
    return "in codes" if layer.quantization.get("weight") else "as they were"


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    if not found:
        return ""
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
