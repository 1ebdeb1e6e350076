"""The best model at equal bytes: form, rank and bits chosen per layer, against one setting for all.

Claim: under one budget for the whole model the choice beats plain quantization, other packages and
uniform low rank of as many bytes or more; and what each part of the choice is worth.

    python -m benchmarks.budget --data DIR [--budgets 2.25,2.56,…] [--variants all,mixed,…]
                                [--beside FRONTIER.json] [--format store] [--json FILE --append]
                                [--plot FILE.svg] [--cache DIR]

Budgets are bits per weight of the linear layers as the format counts them. FRONTIER.json is what
`benchmarks.frontier` wrote for the same model and calibration: per budget the table then names its
best point of no more bytes. Variants, each with all that stands before it:

    mixed        widths of codes alone, groups of 32; dense statistics
    factors      low rank too
    corrections  codes with a low-rank correction too
    groups       groups of 32, 64 and 128 columns
    all          sequential statistics and refit: what the recipes do
    hybrid       the forms that the choice hangs on are measured
    codes        as `all`, but without low rank in any form

`predicted` is the sum of the predicted loss increases, nats per token; `measured` the mean over the
corpora of log(perplexity / dense perplexity). The last lines compare the two over all points.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from asvd_q.budget.choice import Choice
from asvd_q.budget.explicit import with_plan
from asvd_q.errors import RankError
from asvd_q.quantization import float_type_of
from asvd_q.report.tables import Table, size
from benchmarks._agreement import spearman
from benchmarks._compressions import CasePoint, merged
from benchmarks._front import plot_budget
from benchmarks._points import Evaluated, add_append, open_points, tell
from benchmarks.common import Bench, Compressed, finish, known_names, names, parse_options

__all__ = ["BUDGETS", "VARIANTS", "BudgetPoint", "best_of", "main"]

BUDGETS = (2.25, 2.56, 2.75, 3.0, 3.25, 3.59, 4.0, 4.62, 5.5)

_MIXED: dict[str, Any] = {
    "calibration": {"sequential": False},
    "quantize": {"method": "gptq"},
    "budget": {"group_sizes": [32]},
}
_FACTORS = merged(_MIXED, {"decompose": {"scaling": "whitening"}})
_CORRECTIONS = merged(_FACTORS, {"correct": {}})
_GROUPS = merged(_CORRECTIONS, {"budget": {"group_sizes": [32, 64, 128]}})
_ALL = merged(
    _GROUPS,
    {
        "calibration": {"sequential": True},
        "decompose": {"refit": True},
        "quantize": {"refit": True},
    },
)
VARIANTS: Mapping[str, dict[str, Any]] = {
    "mixed": _MIXED,
    "factors": _FACTORS,
    "corrections": _CORRECTIONS,
    "groups": _GROUPS,
    "all": _ALL,
    "hybrid": merged(_ALL, {"budget": {"hybrid": True}}),
    "codes": {key: value for key, value in _ALL.items() if key not in ("decompose", "correct")},
}
"""Sections of the recipes."""


class Setting(BaseModel):
    """What is computed; equal settings give equal numbers.

    Attributes:
        model, window, calibration: as of the common options.
        name: of the variant.
        format: whose bytes count.
        target: bits per weight wanted; None is the dense model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    window: int
    calibration: tuple[str, ...]
    name: str
    format: str
    target: float | None


class BudgetPoint(Setting, Evaluated):
    """What came of it.

    Attributes:
        bytes, layer_bytes: of the whole model and of the linear layers, in the format's count.
        linear_bits_per_weight: of those layers.
        predicted_loss: nats per token.
        forms: how many layers take each form.
        forms_by_kind: the same by kind of layer.
    """

    bytes: int
    layer_bytes: int
    linear_bits_per_weight: float
    predicted_loss: float
    forms: dict[str, int]
    forms_by_kind: dict[str, dict[str, int]]

    @property
    def setting(self) -> Setting:
        return Setting.model_validate(self.model_dump(include=set(Setting.model_fields)))


def best_of(points: Sequence[CasePoint], layer_bytes: int, corpus: str) -> CasePoint | None:
    """The point with the lowest perplexity among those of no more bytes."""
    fitting = [point for point in points if point.layer_bytes <= layer_bytes]
    return min(fitting, key=lambda point: point.perplexity[corpus], default=None)


def _made(setting: Setting, choice: Choice, found: Compressed, seconds: float) -> BudgetPoint:
    kinds: dict[str, Counter[str]] = {}
    for layer in choice.plan:
        kinds.setdefault(layer.kind, Counter())[layer.form] += 1
    return BudgetPoint(
        **setting.model_dump(),
        bytes=choice.total_bytes,
        layer_bytes=choice.layer_bytes,
        linear_bits_per_weight=choice.bits_per_weight,
        predicted_loss=choice.loss,
        forms=dict(Counter(layer.form for layer in choice.plan)),
        forms_by_kind={kind: dict(counts) for kind, counts in kinds.items()},
        perplexity=found.perplexity,
        seconds=round(seconds, 2),
    )


def _table(
    points: Sequence[BudgetPoint],
    dense: BudgetPoint,
    beside: Sequence[CasePoint],
    corpora: Sequence[str],
) -> Table:
    rows = []
    for point in sorted(points, key=lambda one: (-(one.target or 0), one.name)):
        best = best_of(beside, point.layer_bytes, corpora[0])
        rows.append(
            (
                f"{point.target:g}",
                point.name,
                f"{point.linear_bits_per_weight:.3f}",
                size(point.bytes),
                f"{point.predicted_loss:.4f}",
                f"{_measured(point, dense, corpora):.4f}",
                *(f"{point.perplexity[name]:.3f}" for name in corpora),
                ", ".join(f"{count} {form}" for form, count in sorted(point.forms.items())),
                "–" if best is None else f"{best.name} {best.perplexity[corpora[0]]:.3f}",
            )
        )
    columns = ("budget", "variant", "bits", "model", "predicted", "measured", *corpora, "layers")
    return Table("Perplexity under a budget", (*columns, f"best beside, {corpora[0]}"), tuple(rows))


def _measured(point: BudgetPoint, dense: BudgetPoint, corpora: Sequence[str]) -> float:
    rises = [math.log(point.perplexity[name] / dense.perplexity[name]) for name in corpora]
    return sum(rises) / len(rises)


def _agreement(points: Sequence[BudgetPoint], dense: BudgetPoint, corpora: Sequence[str]) -> str:
    predicted = [point.predicted_loss for point in points]
    measured = [_measured(point, dense, corpora) for point in points]
    ratios = sorted(one / other for one, other in zip(measured, predicted, strict=True))
    return (
        f"predicted and measured increase of {len(points)} allocations: Spearman "
        f"{spearman(predicted, measured):.4f}, measured / predicted {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}, median {ratios[len(ratios) // 2]:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budgets", type=lambda text: tuple(map(float, names(text))), default=BUDGETS
    )
    parser.add_argument(
        "--variants", type=lambda text: known_names(text, VARIANTS), default=tuple(VARIANTS)
    )
    parser.add_argument("--beside", type=Path, help="points of benchmarks.frontier")
    parser.add_argument("--format", default="store")
    parser.add_argument("--plot", type=Path, help="where the picture goes; .svg or .png")
    parser.add_argument("--cache", type=Path, help="folder of what later runs need not do again")
    add_append(parser)
    options = parse_options(__doc__ or "", parser)
    points = open_points(BudgetPoint, options, parser)
    beside = _read_beside(options.beside)
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.cache or Path(temporary)
        bench = Bench(options, folder=folder / "generated")
        bench.float_type = float_type_of(bench.source.dtype)
        common: dict[str, Any] = {
            "model": bench.source.name,
            "window": options.window,
            "calibration": options.calibration,
            "format": options.format,
        }
        dense = Setting(**common, name="dense", target=None)
        if not points.has(dense, options.corpora):
            points.add(_dense(dense, bench))
        wanted = []
        for name in options.variants:
            sections = merged(VARIANTS[name], {"budget": {"format": options.format}})
            for target in options.budgets:
                setting = Setting(**common, name=name, target=target)
                wanted.append(setting)
                if points.has(setting, options.corpora):
                    continue
                start = time.perf_counter()
                found = _compute(setting, sections, bench, folder / "trials")
                if found is None:
                    tell(f"{name} {target:g}: no choice is that small")
                    continue
                choice, compressed = found
                seconds = time.perf_counter() - start
                points.add(_made(setting, choice, compressed, seconds))
                tell(f"{name} {target:g}: {compressed.perplexity} {seconds:.0f} s")
    shown = [point for point in points if point.setting in wanted]
    reference = next(point for point in points if point.setting == dense)
    if options.plot is not None:
        plot_budget(
            {
                name: [
                    (point.linear_bits_per_weight, point.perplexity)
                    for point in shown
                    if point.name == name
                ]
                for name in options.variants
            },
            beside,
            options.corpora,
            options.plot,
        )
    finish(options, _table(shown, reference, beside, options.corpora), points.content())
    if len(shown) > 2:
        print(_agreement(shown, reference, options.corpora))


def _compute(
    setting: Setting, sections: dict[str, Any], bench: Bench, folder: Path
) -> tuple[Choice, Compressed] | None:
    recipe = bench.recipe(merged(sections, {"budget": {"bits_per_weight": setting.target}}))
    try:
        choice = bench.budget(recipe, folder).choice
    except RankError:
        return None
    return choice, bench.compressed(with_plan(recipe, choice.plan))


def _dense(setting: Setting, bench: Bench) -> BudgetPoint:
    plan = bench.plan({"decompose": {"kept_ratio": 1.0}})
    layers = sum(layer.predicted_bytes for layer in plan)
    return BudgetPoint(
        **setting.model_dump(),
        bytes=plan.predicted_bytes,
        layer_bytes=layers,
        linear_bits_per_weight=8 * layers / plan.weights,
        predicted_loss=0.0,
        forms={"dense": len(plan.layers)},
        forms_by_kind={},
        perplexity=bench.perplexities(),
    )


def _read_beside(path: Path | None) -> list[CasePoint]:
    return [] if path is None else TypeAdapter(list[CasePoint]).validate_json(path.read_bytes())


if __name__ == "__main__":
    main()
