"""What the decoding benchmark measures, part by part."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from benchmarks._decode_artefacts import Artefact, Workshop
from benchmarks._decode_driver import prompt
from benchmarks._decode_memory import PROMPT, peak_memory_bytes
from benchmarks._decode_models import WIDTHS, Llama, narrow
from benchmarks._decode_points import Point, Step, Width
from benchmarks._decode_speed import Times, alternate, ratio
from benchmarks._decode_turns import Setting, times_apart
from benchmarks._decode_variants import FLOAT, INT4, PEER, Variant, asvd_int4

__all__ = ["allowed_ratio", "sizes", "speed", "sweep"]

_SWEEP_WIDTH = 1024
_BATCHES, _CONTEXTS = (1, 4, 8), (32, 512, 1024)
_SWEEP_ROUNDS, _SIZES_SECONDS = 3, 5
_SIZES_KEPT = (0.8, 0.5)


def allowed_ratio(artefact: Artefact, dense: Artefact) -> float | None:
    """How many times faster than the dense one it is if bytes alone count; None for torch."""
    if artefact.facts is None or dense.facts is None:
        return None
    return dense.facts.token_bytes / artefact.facts.token_bytes


def speed(
    name: str,
    model: Path | Llama,
    chosen: Mapping[str, Variant],
    workshop: Workshop,
    options: Namespace,
) -> list[Point]:
    """Every form of a model, in turns with those that it is compared with; then memory."""
    made = {one.name: workshop.artefact(name, model, one) for one in chosen.values()}
    if options.runtime == "genai":
        made = {key: artefact for key, artefact in made.items() if artefact.runs_in_genai}
    setting = Setting(
        threads=options.threads,
        runtime=options.runtime,
        context=PROMPT,
        tokens=options.tokens,
        rounds=options.rounds,
        seconds=options.seconds,
        processes=options.processes,
    )
    beside = {key: artefact for key, artefact in made.items() if key in (INT4, PEER)}
    known = times_apart(beside, setting) if beside else {}
    return [
        _point(
            artefact,
            known if key in beside else times_apart({key: artefact} | beside, setting),
            made,
            peak_memory_bytes(artefact, options.threads, PROMPT),
        )
        for key, artefact in made.items()
    ]


def sweep(forms: Mapping[str, Variant], workshop: Workshop, options: Namespace) -> list[Step]:
    """How speed changes with the number of sequences and their length."""
    names = (FLOAT, INT4, asvd_int4(0.5), PEER)
    model = narrow(_SWEEP_WIDTH)
    made = {name: workshop.artefact(str(_SWEEP_WIDTH), model, forms[name]) for name in names}
    decoders = {name: one.decoder(options.threads) for name, one in made.items()}
    found: list[Step] = []
    for batch in _BATCHES:
        for context in _CONTEXTS:
            ids = prompt(model.vocabulary, batch, context)
            times = alternate(decoders, ids, tokens=options.tokens, rounds=_SWEEP_ROUNDS)
            found += [
                Step(
                    name=name,
                    batch=batch,
                    context=context,
                    first_token_seconds=one.prefill_seconds,
                    decode_tokens_per_second=batch / one.decode_seconds,
                    first_token_ratio_to_genai_int4=ratio(times[PEER].prefill, one.prefill),
                    decode_ratio_to_genai_int4=ratio(times[PEER].decode, one.decode),
                )
                for name, one in times.items()
            ]
    return found


def sizes(forms: Mapping[str, Variant], workshop: Workshop, options: Namespace) -> list[Width]:
    """Factors over dense codes at growing width."""
    found: list[Width] = []
    for width in WIDTHS:
        names = (INT4, *map(asvd_int4, _SIZES_KEPT))
        made = {name: workshop.artefact(str(width), narrow(width), forms[name]) for name in names}
        decoders = {name: one.decoder(options.threads) for name, one in made.items()}
        times = alternate(
            decoders,
            prompt(narrow(width).vocabulary, 1, PROMPT),
            tokens=options.tokens,
            rounds=options.rounds,
            seconds=min(_SIZES_SECONDS, options.seconds),
        )
        for kept in _SIZES_KEPT:
            name = asvd_int4(kept)
            allowed = allowed_ratio(made[name], made[INT4])
            assert allowed is not None  # both are graphs
            found.append(
                Width(
                    width=width,
                    kept_ratio=kept,
                    ratio=ratio(times[INT4].decode, times[name].decode),
                    allowed_ratio=allowed,
                    dense_tokens_per_second=1 / times[INT4].decode_seconds,
                )
            )
    return found


def _point(
    artefact: Artefact, times: Mapping[str, Times], made: Mapping[str, Artefact], memory: int
) -> Point:
    variant = artefact.variant
    own, peer, dense = (times.get(name) for name in (variant.name, PEER, INT4))
    assert own is not None
    return Point(
        name=variant.name,
        model=artefact.model,
        kept_ratio=artefact.kept_ratio,
        bits=variant.bits,
        decode_tokens_per_second=1 / own.decode_seconds,
        prefill_tokens_per_second=PROMPT / own.prefill_seconds,
        bytes=artefact.bytes,
        token_bytes=None if artefact.facts is None else artefact.facts.token_bytes,
        peak_memory_bytes=memory,
        ratio_to_genai_int4=None if peer is None else ratio(peer.decode, own.decode),
        prefill_ratio_to_genai_int4=None if peer is None else ratio(peer.prefill, own.prefill),
        ratio_to_int4=None if dense is None else ratio(dense.decode, own.decode),
        allowed_ratio=allowed_ratio(artefact, made[INT4]) if INT4 in made else None,
        rounds=len(own.decode),
    )
