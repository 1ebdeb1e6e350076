"""What `evaluate` found, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from asvd_q.evaluation.assess import Assessed
from asvd_q.evaluation.latency import Compared
from asvd_q.report.tables import Table, size
from asvd_q.speed import PeakMemory

__all__ = ["quality_content", "quality_of_texts", "speed_content", "speed_table"]

Speed = tuple[Compared, PeakMemory]


def quality_of_texts(found: Sequence[Assessed], name: str) -> Table:
    """One row per text, the dense model beside it where it was compared."""
    rows = []
    for one in found:
        quality, dense = one.quality, one.dense
        rows.append(
            (
                quality.corpus,
                quality.split,
                f"{quality.windows} × {quality.window}",
                str(quality.tokens),
                f"{quality.perplexity:.4f}",
                "–" if dense is None else f"{dense.perplexity:.4f}",
                "–" if one.change is None else f"{one.change:+.2%}",
                "–" if quality.kl is None else f"{quality.kl:.5f}",
                "–" if quality.agreement is None else f"{quality.agreement:.2%}",
                quality.runtime,
            )
        )
    columns = ("corpus", "split", "windows", "predicted", "perplexity", "dense", "change", "KL")
    how = "" if not found else f", {found[0].quality.protocol} protocol"
    return Table(f"{name}{how}", (*columns, "same arg max", "runtime"), tuple(rows))


def quality_content(found: Sequence[Assessed]) -> list[dict[str, Any]]:
    """The numbers of every text."""
    return [
        one.quality.model_dump()
        | {
            "dense_perplexity": None if one.dense is None else one.dense.perplexity,
            "change": one.change,
        }
        for one in found
    ]


def speed_table(found: Sequence[Speed]) -> Table:
    """One row per batch size and length of prompt."""
    rows = []
    for compared, memory in found:
        timing = compared.timing
        rows.append(
            (
                f"{timing.batch} × {timing.prompt}",
                f"{timing.first_token_seconds * 1e3:.1f} ms",
                f"{timing.prefill_tokens_per_second:.0f} tok/s",
                f"{timing.decode_tokens_per_second:.1f} tok/s",
                f"{timing.total_seconds * 1e3:.0f} ms",
                size(memory.bytes),
                size(memory.imported_bytes),
                compared.runtime,
            )
        )
    timing = found[0][0].timing
    columns = ("batch × prompt", "first token", "prefill", "decode", "total", "peak memory")
    return Table(
        f"Speed with {timing.tokens} tokens generated, medians of {len(timing.turns)} rounds",
        (*columns, "of it packages", "runtime"),
        tuple(rows),
    )


def speed_content(found: Sequence[Speed]) -> list[dict[str, Any]]:
    """The numbers of every batch size and length of prompt."""
    return [
        {
            "batch": compared.timing.batch,
            "prompt": compared.timing.prompt,
            "tokens": compared.timing.tokens,
            "first_token_seconds": compared.timing.first_token_seconds,
            "prefill_tokens_per_second": compared.timing.prefill_tokens_per_second,
            "decode_tokens_per_second": compared.timing.decode_tokens_per_second,
            "total_seconds": compared.timing.total_seconds,
            "turns": [asdict(turn) for turn in compared.timing.turns],
            "peak_memory_bytes": memory.bytes,
            "imported_memory_bytes": memory.imported_bytes,
            "runtime": compared.runtime,
        }
        for compared, memory in found
    ]
