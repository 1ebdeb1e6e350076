"""Numbers of layers by block and kind: what a heat map shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from asvd_q.records import LayerRecord
from asvd_q.report.run import RunRecord

__all__ = ["HeatMap", "heat_maps"]


@dataclass(frozen=True)
class HeatMap:
    """One number of every layer inside the blocks.

    Attributes:
        title: what the number is.
        kinds, blocks: rows and columns, in the order of the model.
        values: (kind, block) → the number; the mean where a block has several of a kind.
        form: format specification of Python's for a number.
        logarithmic: whether shades stand for orders of magnitude.
    """

    title: str
    kinds: tuple[str, ...]
    blocks: tuple[int, ...]
    values: Mapping[tuple[str, int], float]
    form: str
    logarithmic: bool = False

    @property
    def low(self) -> str:
        """The smallest number, as it is written."""
        return f"{min(self.values.values()):{self.form}}"

    @property
    def high(self) -> str:
        """The largest."""
        return f"{max(self.values.values()):{self.form}}"


def heat_maps(record: RunRecord, predicted: Mapping[str, float]) -> tuple[HeatMap, ...]:
    """The maps that have something to tell.

    Args:
        predicted: layer → loss increase as a search predicted it.
    """
    maps = (
        _map(record, "Kept ratio of the parameters", lambda layer: layer.kept_ratio, ".2f"),
        _map(record, "Bits per weight, scales included", _bits, ".1f"),
        _map(
            record,
            "Predicted loss increase, nats per token",
            lambda layer: predicted.get(layer.name),
            ".0e",
            logarithmic=True,
        ),
        _map(record, "Relative output error", _error, ".3f", logarithmic=True),
    )
    return tuple(one for one in maps if len(set(one.values.values())) > 1)


def _map(
    record: RunRecord,
    title: str,
    value: Callable[[LayerRecord], float | None],
    form: str,
    *,
    logarithmic: bool = False,
) -> HeatMap:
    inside = [layer for layer in record.layers if layer.block is not None]
    found: dict[tuple[str, int], list[float]] = {}
    for layer in inside:
        one = value(layer)
        if one is None or layer.block is None or (logarithmic and one <= 0):
            continue  # a layer that was left alone loses nothing
        found.setdefault((layer.kind, layer.block), []).append(one)
    return HeatMap(
        title=title,
        kinds=tuple(dict.fromkeys(layer.kind for layer in inside)),
        blocks=tuple(sorted({layer.block for layer in inside if layer.block is not None})),
        values={key: sum(values) / len(values) for key, values in found.items()},
        form=form,
        logarithmic=logarithmic,
    )


def _bits(layer: LayerRecord) -> float:
    return 8 * layer.bytes_after / (layer.shape[0] * layer.shape[1])


def _error(layer: LayerRecord) -> float | None:
    return list(layer.errors.values())[-1] if layer.errors else None
