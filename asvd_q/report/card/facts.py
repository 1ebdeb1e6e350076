"""What a model card has to say of a run, as words and rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from asvd_q.plan import Form, QuantSpec
from asvd_q.records import LayerRecord
from asvd_q.report.run import ArtefactRecord, RunRecord
from asvd_q.report.tables import Table, options_text, size

__all__ = ["facts_table", "limits", "made_of", "packages", "proof_rows", "quality_table"]

_MOST = 8
"""Settings of codes that are listed; an allocation by budget may have dozens."""

_NAMES = {"gptq": "GPTQ", "rtn": "RTN", "nf4": "NF4"}


def made_of(record: RunRecord) -> str:
    """What was done to the model, as one sentence's object."""
    forms = Counter(layer.form for layer in record.layers)
    methods = sorted({spec.method for layer in record.layers for spec in _specs(layer)})
    parts = []
    if forms["factors"]:
        parts.append("low-rank factors (activation-aware SVD)")
    if methods:
        widths = sorted({spec.bits for layer in record.layers for spec in _specs(layer)})
        bits = " and ".join(map(str, widths)) if len(widths) < 3 else f"{widths[0]} to {widths[-1]}"
        names = " and ".join(_NAMES.get(method, method) for method in methods)
        parts.append(f"{names} codes of {bits} bits")
    if forms["correction"]:
        parts.append("low-rank corrections of them")
    return " and ".join(parts) or "its weights as they are"


def facts_table(
    record: RunRecord, artefact: ArtefactRecord, recipe: Mapping[str, Any] | None
) -> Table:
    """Name and value of everything that was done, and what it takes."""
    return Table("", ("", ""), tuple(_facts(record, artefact, recipe)))


def _facts(
    record: RunRecord, artefact: ArtefactRecord, recipe: Mapping[str, Any] | None
) -> Iterator[tuple[str, str]]:
    source = record.source
    revision = f", revision {source.revision}" if source.revision else ""
    yield "source", f"{source.name}{revision}"
    yield "architecture", source.model_type
    yield "SHA-256 of the source's weights", f"`{source.weights_sha256}`"
    yield "layers", _forms(record)
    for form, word in (("factors", "ranks of factors"), ("correction", "ranks of corrections")):
        ranks = [layer.rank for layer in record.layers if layer.form == form and layer.rank]
        if ranks:
            yield word, _range(ranks)
    yield from (("codes", words) for words in _codes(record))
    if recipe and recipe.get("calibration"):
        yield "calibrated on", _calibration(recipe["calibration"])
    yield "parameters kept", f"{record.parameters.ratio:.4f} of those of the layers"
    yield "bits per weight of the layers", f"{record.bits_per_weight:.3f}"
    for word, found in (("layers", record.layer_bytes), ("whole model", record.total_bytes)):
        yield f"bytes of the {word}", f"{size(found.before)} to {size(found.after)}"
    if artefact.options:
        yield f"options of the {artefact.format} format", options_text(artefact.options)
    yield "weight files here", f"{size(artefact.weight_bytes)} ({artefact.weight_bytes} bytes)"
    yield "all files here but this card", f"{size(artefact.bytes)} ({artefact.bytes} bytes)"


def quality_table(record: RunRecord) -> Table:
    """Dense and compressed perplexity with all that has to be known to measure them again."""
    texts = {
        (one.corpus, one.split): one.sha256 for one in record.corpora if one.use == "evaluation"
    }
    rows = []
    for assessed in record.assessed:
        one, before = assessed.quality, assessed.dense
        key = one.corpus, one.split
        rows.append(
            (
                one.corpus,
                one.split,
                f"{one.windows} × {one.window}"
                + ("" if one.protocol == "windows" else f", {one.protocol} protocol"),
                str(one.tokens),
                "–" if before is None else f"{before.perplexity:.3f}",
                f"{one.perplexity:.3f}",
                "–" if assessed.change is None else f"{assessed.change:+.2%}",
                "–" if one.kl is None else f"{one.kl:.4f}",
                "–" if one.agreement is None else f"{one.agreement:.2%}",
                f"`{texts[key][:12]}`" if key in texts else "–",
            )
        )
    columns = ("corpus", "split", "windows", "tokens", "dense", "compressed", "change", "KL")
    return Table("", (*columns, "same arg max", "text's SHA-256"), tuple(rows))


def proof_rows(artefact: ArtefactRecord) -> list[str]:
    """The two proofs, a sentence each."""
    proof = artefact.proof
    found = [
        f"The files were read back by code that shares nothing with the exporter: the matrices of "
        f"all {proof.layers} layers are those that were measured, to the last bit."
    ]
    if proof.status != "proven":
        return [*found, f"The artefact was not run: {proof.detail or 'its runtime is missing'}."]
    assert proof.relative_error is not None
    assert proof.kl is not None
    assert proof.agreement is not None
    return [
        *found,
        f"It ran in {proof.runtime} on {proof.tokens} tokens of text, {proof.decode_steps} steps "
        f"of them decoded with a cache, against the same weights in torch: relative logit error "
        f"{proof.relative_error:.2e}, KL divergence {proof.kl:.2e} nats per token, the same arg "
        f"max for {proof.agreement:.2%}.",
    ]


def limits(record: RunRecord, artefact: ArtefactRecord) -> list[str]:
    """What the run warns of, and what holds of this artefact; nothing of its neighbours."""
    others = {warning for one in record.artefacts for warning in one.warnings}
    others |= set(artefact.warnings)
    return [*artefact.notes, *(one for one in record.warnings if one not in others)]


def packages(record: RunRecord) -> str:
    """Installed packages with their versions."""
    found = record.versions.items()
    return ", ".join(f"{name} {one}" for name, one in found if one != "not installed")


def _forms(record: RunRecord) -> str:
    words: dict[Form, str] = {
        "factors": "as factors",
        "correction": "in codes with a correction",
        "dense": "dense",
    }
    counts = Counter(layer.form for layer in record.layers)
    parts = (f"{counts[form]} {word}" for form, word in words.items() if counts[form])
    return f"{len(record.layers)}: {', '.join(parts)}" if record.layers else "0"


def _codes(record: RunRecord) -> list[str]:
    found = Counter(_words(spec) for layer in record.layers for spec in _specs(layer))
    matrices = sum(len(layer.quantization) for layer in record.layers)
    lines = [f"{words}: {count} of {matrices} matrices" for words, count in found.most_common()]
    if len(lines) > _MOST:
        return [*lines[:_MOST], f"and {len(lines) - _MOST} other settings, see `asvd_q.json`"]
    return lines


def _specs(layer: LayerRecord) -> Iterator[QuantSpec]:
    return (spec for spec in layer.quantization.values() if spec is not None)


def _words(spec: QuantSpec) -> str:
    name = _NAMES.get(spec.method, spec.method)
    if spec.method == "nf4":
        twice = ", scales in codes too" if spec.double_quant else ""
        return f"{name}, blocks of {spec.group_size}{twice}"
    group = "one scale per row" if spec.group_size == -1 else f"groups of {spec.group_size}"
    return f"{name}, {spec.bits} bits, {group}, {'' if spec.symmetric else 'a'}symmetric"


def _calibration(section: Mapping[str, Any]) -> str:
    corpora = section.get("corpora") or ()
    names = ", ".join(f"{one.get('source')} ({one.get('split')})" for one in corpora)
    return f"{names}: {section.get('samples')} windows of {section.get('window')} tokens"


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
