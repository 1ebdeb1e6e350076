"""Where a model's bytes lie: by part of the model, and by what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from asvd_q.plan import QuantSpec, Slot
from asvd_q.records import LayerRecord
from asvd_q.report.page.grid import NOTHING, Cell, Column, Grid, number, text
from asvd_q.report.plots import part_of
from asvd_q.report.run import RunRecord
from asvd_q.report.tables import size

__all__ = ["CONTENTS", "PartSize", "part_sizes", "size_grid"]

OUTSIDE = "embedding, head, norms"

CONTENTS = {
    "floats": "floats, as they were",
    "floats A": "factor A, floats",
    "floats B": "factor B, floats",
    "codes": "codes of whole layers",
    "codes A": "factor A, codes",
    "codes B": "factor B, codes",
    "scales": "scales and zero points",
}
"""What is stored, in the order of the chart, and what a reader is told it is."""


@dataclass(frozen=True)
class PartSize:
    """One part of the model.

    Attributes:
        before: bytes in the source's float type.
        after: by what is stored, a key of `CONTENTS`; kinds that take nothing are left out.
    """

    name: str
    before: int
    after: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts, afterwards."""
        return sum(self.after.values())


def part_sizes(record: RunRecord) -> tuple[PartSize, ...]:
    """Every part that there is; together they are the record's total bytes."""
    rest = record.total_bytes.before - record.layer_bytes.before
    before, after = {OUTSIDE: rest}, {OUTSIDE: {"floats": rest}}
    for layer in record.layers:
        part = OUTSIDE if layer.block is None else part_of(layer.name)
        before[part] = before.get(part, 0) + layer.bytes_before
        found = after.setdefault(part, {})
        for content, count in _contents(layer):
            found[content] = found.get(content, 0) + count
    return tuple(
        PartSize(part, before[part], {key: found[key] for key in CONTENTS if found.get(key)})
        for part, found in after.items()
        if before[part]
    )


def size_grid(parts: tuple[PartSize, ...]) -> Grid:
    """Parts in rows, contents in columns."""
    contents = [key for key in CONTENTS if any(key in part.after for part in parts)]
    whole = PartSize(
        "whole model",
        sum(part.before for part in parts),
        {key: sum(part.after.get(key, 0) for part in parts) for key in contents},
    )
    columns = (
        Column("part", numeric=False),
        Column("before"),
        Column("after"),
        Column("ratio", "after / before"),
        *(Column(CONTENTS[key]) for key in contents),
    )
    rows = tuple(
        (
            text(part.name),
            _bytes(part.before),
            _bytes(part.total),
            number(part.total / max(part.before, 1), ".3f"),
            *(_bytes(part.after.get(key, 0)) for key in contents),
        )
        for part in (*parts, whole)
    )
    return Grid("Bytes by part", columns, rows)


def _bytes(count: int) -> Cell:
    return text(size(count), count) if count else NOTHING


def _contents(layer: LayerRecord) -> Iterator[tuple[str, int]]:
    """What a layer stores, with its bytes: `bytes_after` in parts.

    Codes are counted alone, and what is left of a quantized matrix are its scales; floats have
    the width that they had before.
    """
    weights = layer.shape[0] * layer.shape[1]
    left = layer.bytes_after
    for slot, (rows, columns) in layer.slot_shapes().items():
        spec = layer.quantization[slot]
        if spec is None:
            count = rows * columns * layer.bytes_before // weights
        else:
            count = _code_bytes(rows * columns, spec)
        left -= count
        yield _content(slot, quantized=spec is not None), count
    if left:
        yield "scales", left


def _code_bytes(weights: int, spec: QuantSpec) -> int:
    return -(-weights * spec.bits // 8)


def _content(slot: Slot, *, quantized: bool) -> str:
    word = "codes" if quantized else "floats"
    return word if slot == "weight" else f"{word} {slot}"
