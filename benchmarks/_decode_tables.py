"""The decoding benchmark's tables."""

from __future__ import annotations

from collections.abc import Sequence

from asvd_q.report.tables import Table, size
from benchmarks._decode_points import Point, Step, Width, paying_width

__all__ = ["size_table", "speed_table", "sweep_table"]


def speed_table(title: str, points: Sequence[Point]) -> Table:
    """Tokens per second; "over" columns are speeds in decoding over another's."""
    columns = (
        *("form", "kept", "bits", "decode/s", "prefill/s", "over GenAI", "prefill over"),
        *("over int4", "allowed", "files", "per token", "memory", "rounds"),
    )
    rows = tuple(
        (
            point.name,
            f"{point.kept_ratio:.3f}",
            str(point.bits),
            f"{point.decode_tokens_per_second:.1f}",
            f"{point.prefill_tokens_per_second:.0f}",
            _ratio(point.ratio_to_genai_int4),
            _ratio(point.prefill_ratio_to_genai_int4),
            _ratio(point.ratio_to_int4),
            _ratio(point.allowed_ratio),
            size(point.bytes),
            "–" if point.token_bytes is None else size(point.token_bytes),
            size(point.peak_memory_bytes),
            str(point.rounds),
        )
        for point in points
    )
    return Table(title, columns, rows)


def sweep_table(steps: Sequence[Step]) -> Table:
    """A row per batch and context; of every form the first token and the speed after it."""
    names = list(dict.fromkeys(step.name for step in steps))
    found = {(step.batch, step.context, step.name): step for step in steps}
    rows = []
    for batch, context in dict.fromkeys((step.batch, step.context) for step in steps):
        here = [found[batch, context, name] for name in names]
        cells = [
            cell
            for step in here
            for cell in (
                f"{1e3 * step.first_token_seconds:.1f}",
                f"{step.decode_tokens_per_second:.0f}",
            )
        ]
        rows.append((f"{batch} × {context}", *cells))
    heads = [head for name in names for head in (f"{name}, ms", "tokens/s")]
    title = "Time to the first token and speed after it, by batch and context"
    return Table(title, ("batch × context", *heads), tuple(rows))


def size_table(widths: Sequence[Width]) -> Table:
    """A row per width; the title says from which one on each kept ratio is faster."""
    ratios = list(dict.fromkeys(one.kept_ratio for one in widths))
    rows = []
    for width in dict.fromkeys(one.width for one in widths):
        here = {one.kept_ratio: one for one in widths if one.width == width}
        cells = [
            cell
            for kept in ratios
            for cell in (f"{here[kept].ratio:.2f}", f"{here[kept].allowed_ratio:.2f}")
        ]
        dense = next(iter(here.values())).dense_tokens_per_second
        rows.append((str(width), f"{dense:.0f}", *cells))
    heads = [head for kept in ratios for head in (f"kept {kept}", "allowed")]
    starts = ", ".join(f"kept {kept} {_start(widths, kept)}" for kept in ratios)
    title = f"Factors over dense codes in decoding, by width: {starts}"
    return Table(title, ("width", "dense int4/s", *heads), tuple(rows))


def _start(widths: Sequence[Width], kept: float) -> str:
    first = paying_width(widths, kept)
    return "never faster" if first is None else f"faster from {first} on"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
