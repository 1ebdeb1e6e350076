"""How long a layer's matrices take on this machine: a small table, measured once and kept.

    <folder>/kernels.json     {"setting": {"format": …, …}, "nanoseconds": {kernel: …, …}}

The table belongs to one format, its options, its runtime and the machine. Under any other setting
it is measured anew, and takes the old one's place.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from asvd_q.artefact import TimedExporter
from asvd_q.budget.counting import Count
from asvd_q.budget.format import require_timed
from asvd_q.budget.offers import Offer, layer_offers
from asvd_q.errors import RecipeError
from asvd_q.files import make_folder, write_text
from asvd_q.models.refs import WeightRef
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.recipe import Recipe

__all__ = ["KERNELS", "KernelTimes", "kernel_times", "offered_layers"]

KERNELS = "kernels.json"

_Matrix = tuple[tuple[int, int], QuantSpec | None]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Machine(_Frozen):
    """Where was measured.

    Attributes:
        threads: processors that this process may use.
    """

    platform: str
    processor: str
    threads: int


class _Setting(_Frozen):
    """What times depend on."""

    format: str
    options: dict[str, Any]
    runtime: str
    machine: _Machine


class _Table(_Frozen):
    setting: _Setting
    nanoseconds: dict[str, PositiveInt] = {}


class KernelTimes:
    """Times of one decoded token (batch 1, one row) through the matrices of layers."""

    def __init__(
        self,
        count: Count,
        folder: Path,
        *,
        head: tuple[int, int] | None = None,
        known_only: bool = False,
    ) -> None:
        """
        Args:
            count: of the format whose runtime is timed.
            folder: of the table.
            head: shape (out, in) of an output projection that no layer plan covers, and that so
                stays in floating point.
            known_only: measure nothing and write nothing.

        Raises:
            RecipeError: the format has no runtime that can be timed here.
        """
        require_timed(count)
        exporter = count.exporter
        assert exporter is not None
        assert isinstance(exporter, TimedExporter)
        self._exporter: TimedExporter = exporter
        self._head = head
        self._known_only = known_only
        self._path = folder / KERNELS
        self._setting = _Setting(
            format=count.name,
            options=exporter.options.model_dump(mode="json"),
            runtime=exporter.runtime,
            machine=_machine(),
        )
        self._known = _read(self._path, self._setting)

    @property
    def setting(self) -> dict[str, Any]:
        """What the times depend on, as plain JSON values."""
        return self._setting.model_dump(mode="json")

    @property
    def table(self) -> dict[str, int]:
        """Nanoseconds of every kernel that is known."""
        return dict(self._known)

    def measure(self, layers: Iterable[LayerPlan]) -> None:
        """Measure whatever these layers, and the output head, need and is not known, together.

        Raises:
            RecipeError: nothing may be measured, and something is not known.
        """
        self._measure([matrix for layer in layers for matrix in _matrices(layer)] + self._of_head)

    def nanoseconds(self, layer: LayerPlan) -> int:
        """Of all matrices of a layer; they are measured if they are not known.

        Raises:
            RecipeError: as `measure`.
        """
        return self._sum(_matrices(layer))

    @cached_property
    def head(self) -> int:
        """Nanoseconds of an output projection that no layer plan covers."""
        return self._sum(self._of_head)

    def total(self, plan: Plan) -> int:
        """Nanoseconds of all layers and the output head."""
        return sum(map(self.nanoseconds, plan)) + self.head

    def cost(self, offer: Offer) -> int:
        """What a form takes of a budget of time."""
        return self.nanoseconds(offer.layer)

    @property
    def _of_head(self) -> list[_Matrix]:
        return [] if self._head is None else [(self._head, None)]

    def _sum(self, matrices: list[_Matrix]) -> int:
        self._measure(matrices)
        return sum(self._known[self._exporter.kernel(*matrix)] for matrix in matrices)

    def _measure(self, matrices: list[_Matrix]) -> None:
        named = {self._exporter.kernel(*matrix): matrix for matrix in matrices}
        missing = {name: matrix for name, matrix in named.items() if name not in self._known}
        if not missing:
            return
        if self._known_only:
            raise RecipeError(
                "budget.decode_speed needs times of this machine that have not been measured: run "
                "`asvd-q search` on the recipe first"
            )
        seconds = self._exporter.decode_seconds(list(missing.values()))
        for name, found in zip(missing, seconds, strict=True):
            self._known[name] = max(round(found * 1e9), 1)
        make_folder(self._path.parent)
        table = _Table(setting=self._setting, nanoseconds=self._known)
        write_text(self._path, table.model_dump_json(indent=1) + "\n")


def kernel_times(
    recipe: Recipe,
    weights: Iterable[WeightRef],
    count: Count,
    folder: Path,
    *,
    known_only: bool = False,
) -> KernelTimes | None:
    """The times that a recipe's budget is spent by; None where it is not spent by times.

    All that its layers may become is measured at once, as far as it is not known.

    Args:
        recipe: with `budget` and `quantize` sections.
        weights: of the whole model.

    Raises:
        RecipeError: the format cannot be timed; or `known_only`, and something is not known.
    """
    assert recipe.budget is not None
    if recipe.budget.decode_speed is None:
        return None
    weights = list(weights)
    offered = {weight.name for weight in weights if _is_offered(weight, recipe, weights)}
    heads = (weight for weight in weights if weight.vocabulary == "head")
    covered = offered | {weight.tied for weight in weights if weight.name in offered}
    head = next((weight.shape for weight in heads if weight.name not in covered), None)
    times = KernelTimes(count, folder, head=head, known_only=known_only)
    times.measure(offered_layers(recipe, weights, count))
    return times


def offered_layers(recipe: Recipe, weights: Iterable[WeightRef], count: Count) -> list[LayerPlan]:
    """Everything that there is to choose from."""
    weights = list(weights)
    return [
        offer.layer
        for weight in weights
        if _is_offered(weight, recipe, weights)
        for offer in layer_offers(weight, recipe, count)
    ]


def _is_offered(weight: WeightRef, recipe: Recipe, weights: Sequence[WeightRef]) -> bool:
    """Whether there is a choice about it; about a tied head there is under the embedding's name."""
    part = weight.vocabulary
    if part is None:
        return True
    assert recipe.quantize is not None
    tied = any(other.tied == weight.name for other in weights)
    return recipe.quantize.covers(part) and not tied


def _matrices(layer: LayerPlan) -> list[_Matrix]:
    """What a token is multiplied with; rows that are looked up take next to no time."""
    if layer.vocabulary == "embedding":
        return []
    return [(shape, layer.quantization[slot]) for slot, shape in layer.slot_shapes().items()]


def _read(path: Path, setting: _Setting) -> dict[str, int]:
    """What is known under a setting: nothing, where the file is missing, damaged or of another."""
    try:
        table = _Table.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}
    return dict(table.nanoseconds) if table.setting == setting else {}


def _machine() -> _Machine:
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    return _Machine(
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        threads=len(allowed(0)) if allowed is not None else os.cpu_count() or 1,
    )


def _processor() -> str:
    """The processor's model; Linux tells it in a file alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
