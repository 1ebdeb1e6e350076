"""What is said of decoding: beside GenAI's graph, of factors beside dense codes, by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from asvd_q.report.tables import size
from benchmarks._decode_claims import Claim
from benchmarks._decode_points import Point, Step, Width, paying_width
from benchmarks._decode_variants import INT4, MERGED, PEER, TORCH
from benchmarks.page.grid import grid
from benchmarks.page.result import MissingResultError, Results

__all__ = ["decode_finding", "decode_table", "forms_table", "sweep_table", "widths_table"]

_WIDE = "wide"


def decode_table(results: Results) -> str:
    """Our dense graphs beside GenAI's, and which claims do not hold."""
    points = _points(results)
    rows: list[tuple[str, ...]] = []
    for model in dict.fromkeys(point.model for point in points):
        here = {point.name: point for point in points if point.model == model}
        peer = here[PEER]
        rows += [
            (
                f"{model}{words}",
                _ratio(here[name].ratio_to_genai_int4),
                _ratio(here[name].prefill_ratio_to_genai_int4),
                f"{peer.peak_memory_bytes / here[name].peak_memory_bytes:.3f}",
                f"{here[name].decode_tokens_per_second:.0f}",
                size(here[name].peak_memory_bytes),
            )
            for name, words in ((INT4, ""), (MERGED, ", `merge_products`"))
            if name in here
        ]
    heads = (
        *("dense 4 bits, ours over GenAI's", "decoding", "prompt of 128"),
        *("memory, GenAI's over ours", "ours: tokens per second", "ours: memory"),
    )
    return f"{grid(heads, rows)}\n\n{_verdict(results)}"


def forms_table(results: Results) -> str:
    """Every form's decoding beside that of dense codes, and what the bytes allow."""
    points = [one for one in _points(results) if one.name not in (TORCH, INT4, PEER)]
    models = list(dict.fromkeys(point.model for point in points))
    found = {(point.name, point.model): point for point in points}
    rows = []
    for name in dict.fromkeys(point.name for point in points):
        cells: list[str] = []
        for model in models:
            point = found.get((name, model))
            pair = (None, None) if point is None else (point.ratio_to_int4, point.allowed_ratio)
            cells += map(_ratio, pair)
        rows.append((name, *cells))
    heads = [head for model in models for head in (model, "bytes allow")]
    return grid(("decoding over dense 4 bits", *heads), rows)


def widths_table(results: Results) -> str:
    """Factors over dense codes by width, and from which one on they pay."""
    widths = [Width.model_validate(one) for one in _part(results, "sizes")]
    kept = list(dict.fromkeys(one.kept_ratio for one in widths))
    found = {(one.width, one.kept_ratio): one for one in widths}
    rows = []
    for width in dict.fromkeys(one.width for one in widths):
        cells = []
        for share in kept:
            one = found[width, share]
            cells += [f"{one.ratio:.2f}", f"{one.allowed_ratio:.2f}"]
        rows.append((str(width), *cells))
    heads = [head for share in kept for head in (f"kept {share:g}", "bytes allow")]
    return f"{grid(('width', *heads), rows)}\n\n{_paying(widths, kept)}"


def sweep_table(results: Results) -> str:
    """The peer's first token and decoding by batch and context, and how many times as fast ours."""
    steps = [Step.model_validate(one) for one in _part(results, "sweep")]
    names = [name for name in dict.fromkeys(step.name for step in steps) if name != PEER]
    found = {(step.batch, step.context, step.name): step for step in steps}
    rows = []
    for batch, context in dict.fromkeys((step.batch, step.context) for step in steps):
        peer = found[batch, context, PEER]
        here = [found[batch, context, name] for name in names]
        rows.append(
            (
                f"{batch} × {context}",
                f"{1e3 * peer.first_token_seconds:.1f} ms",
                *(f"{one.first_token_ratio_to_genai_int4:.2f}×" for one in here),
                f"{peer.decode_tokens_per_second:.0f}",
                *(f"{one.decode_ratio_to_genai_int4:.2f}×" for one in here),
            )
        )
    heads = (f"first token, {PEER}", *names, f"tokens per second, {PEER}", *names)
    return grid(("batch × context", *heads), rows)


def decode_finding(results: Results) -> str:
    """Dense codes beside GenAI's graph, factors beside dense codes, and the claims."""
    return " ".join([*_sentences(_points(results)), _verdict(results)])


def _sentences(points: Sequence[Point]) -> Iterator[str]:
    for point in points:
        if point.name == INT4 and point.ratio_to_genai_int4 is not None:
            yield (
                f"{point.model}: dense 4-bit codes decode at "
                f"{point.ratio_to_genai_int4:.2f} of the speed of {PEER}."
            )
    factors = [
        f"{point.ratio_to_int4:.2f} at kept {point.kept_ratio:.2f}"
        for point in points
        if point.model == _WIDE and point.kept_ratio < 1 and point.ratio_to_int4 is not None
    ]
    if factors:
        words = ", ".join(factors)
        yield f"{_WIDE}: factors in 4 bits decode, over dense codes in 4 bits: {words}."


def _verdict(results: Results) -> str:
    """How many claims hold, and those that do not, with their numbers."""
    found = [Claim.model_validate(one) for one in _part(results, "claims")]
    failed = [claim for claim in found if not claim.holds]
    if not failed:
        return f"All {len(found)} claims of the script hold."
    words = "; ".join(
        f"{claim.text}, {claim.value:.3f} where {claim.least:.3f} is claimed" for claim in failed
    )
    return f"{len(found) - len(failed)} of {len(found)} claims of the script hold. Not so: {words}."


def _paying(widths: Sequence[Width], kept: Sequence[float]) -> str:
    words = []
    for share in kept:
        first = paying_width(widths, share)
        where = "at none of these widths" if first is None else f"from a width of {first} on"
        words.append(f"{where} at kept {share:g}")
    return f"Low rank pays {', and '.join(words)}."


def _points(results: Results) -> list[Point]:
    return [Point.model_validate(one) for one in results["decode"].numbers]


def _part(results: Results, name: str) -> list[dict[str, Any]]:
    rest: dict[str, list[dict[str, Any]]] = results["decode"].rest or {}
    if name not in rest:
        raise MissingResultError(f"decode has no {name}: that part was not run")
    return rest[name]


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
