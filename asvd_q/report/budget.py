"""What a budget search leaves behind: the plan as a recipe's sections, its table, the front."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from asvd_q.budget.choice import Choice
from asvd_q.budget.explicit import matrix_override
from asvd_q.budget.front import Uniform, front, uniform_models
from asvd_q.budget.solving import BudgetResult
from asvd_q.files import make_folder, write_text
from asvd_q.plan import LayerPlan
from asvd_q.report.plots import plot_budgets
from asvd_q.report.tables import Table, size

__all__ = [
    "budget_summary",
    "budget_table",
    "front_content",
    "front_table",
    "write_budget",
    "write_front",
]


def write_budget(result: BudgetResult, folder: Path) -> None:
    """Write `plan.yaml`, `budget.json`, and the front around the choice as a plot.

    `plan.yaml` holds the ranks of `decompose` and `correct`, either of them null where no layer
    takes that form, and `quantize.overrides`: with them in the place of the budget, the overrides
    behind its own, a recipe makes the same plan.
    """
    make_folder(folder)
    write_text(folder / "plan.yaml", yaml.safe_dump(_sections(result.choice), sort_keys=False))
    choices, uniform = [], uniform_models(result.tried, result.offering)
    if result.offering.times is None:  # else the candidates are those of a budget of time
        choices = front(result.offering)
    content = {
        "format": result.offering.count.name,
        **_point(result.choice),
        "layers": {
            layer.name: {
                **_form(layer),
                "bytes": result.choice.allocation.chosen[layer.name].bytes,
                "predicted_loss": result.choice.allocation.chosen[layer.name].loss,
                "tried": len(result.tried[layer.name].tried) if layer.name in result.tried else 0,
            }
            for layer in result.choice.plan
        },
        "front": front_content(choices, uniform),
    }
    write_text(folder / "budget.json", json.dumps(content, indent=1) + "\n")
    plot_budgets(_spots(choices), _uniform_spots(uniform), folder, chosen=_spot(result.choice))


def write_front(choices: Sequence[Choice], uniform: Sequence[Uniform], folder: Path) -> list[Path]:
    """Write `frontier.json` and its plot."""
    make_folder(folder)
    path = folder / "frontier.json"
    write_text(path, json.dumps(front_content(choices, uniform), indent=1) + "\n")
    spots = _spots(choices)
    return [path, *plot_budgets(spots, _uniform_spots(uniform), folder, name="frontier")]


def front_content(choices: Sequence[Choice], uniform: Sequence[Uniform]) -> list[dict[str, Any]]:
    """All models by falling bytes, as plain values."""
    points = [
        *({"name": "budget", **_point(choice)} for choice in choices),
        *(
            {
                "name": model.name,
                "bits_per_weight": model.bits_per_weight,
                "layer_bytes": model.layer_bytes,
                "bytes": model.total_bytes,
                "predicted_loss": model.loss,
            }
            for model in uniform
        ),
    ]
    return sorted(points, key=lambda point: -float(point["layer_bytes"]))


def front_table(choices: Sequence[Choice], uniform: Sequence[Uniform]) -> Table:
    """One row per budget, plain quantization among them."""
    rows = [
        (choice.layer_bytes, _front_row("budget", choice, _forms(choice))) for choice in choices
    ]
    rows += [(model.layer_bytes, _front_row(model.name, model, "")) for model in uniform]
    rows.sort(key=lambda pair: -pair[0])
    columns = ("model", "bits per weight", "whole model", "predicted loss", "perplexity", "layers")
    return Table("The front", columns, tuple(row for _, row in rows))


def budget_table(result: BudgetResult) -> Table:
    """One row per layer: what was chosen, and what it is predicted to cost."""
    chosen = result.choice.allocation.chosen
    rows = tuple(
        (
            layer.name,
            layer.form,
            str(layer.rank or "–"),
            "/".join(
                "–" if spec is None else str(spec.bits) for spec in layer.quantization.values()
            ),
            "/".join(
                "–" if spec is None else str(spec.group_size)
                for spec in layer.quantization.values()
            ),
            str(chosen[layer.name].bytes),
            f"{chosen[layer.name].loss:.5f}",
            str(len(result.offering.candidates[layer.name])),
        )
        for layer in result.choice.plan
    )
    columns = ("layer", "form", "rank", "bits", "group", "bytes", "predicted loss", "candidates")
    return Table(f"What {result.offering.count.name} is given", columns, rows)


def budget_summary(result: BudgetResult) -> list[str]:
    """What was chosen in all, its size and what it is predicted to lose."""
    choice = result.choice
    return [
        f"{_forms(choice)}: {choice.bits_per_weight:.3f} bits per weight, "
        f"{size(choice.layer_bytes)} in the layers and {size(choice.total_bytes)} in all, as "
        f"{result.offering.count.name} counts",
        f"predicted loss increase {choice.loss:.5f} nats per token: a perplexity about "
        f"{_rise(choice.loss)} higher",
    ]


def _rise(loss: float) -> str:
    return f"{math.expm1(min(loss, 700.0)):.2%}"


def _forms(choice: Choice) -> str:
    counts = Counter(layer.form for layer in choice.plan)
    return ", ".join(f"{count} {form}" for form, count in sorted(counts.items()))


def _front_row(name: str, model: Choice | Uniform, forms: str) -> tuple[str, ...]:
    return (
        name,
        f"{model.bits_per_weight:.3f}",
        size(model.total_bytes),
        f"{model.loss:.5f}",
        f"+{_rise(model.loss)}",
        forms,
    )


def _point(choice: Choice) -> dict[str, Any]:
    return {
        "bits_per_weight": choice.bits_per_weight,
        "layer_bytes": choice.layer_bytes,
        "bytes": choice.total_bytes,
        "predicted_loss": choice.loss,
        "forms": dict(Counter(layer.form for layer in choice.plan)),
    }


def _form(layer: LayerPlan) -> dict[str, Any]:
    return layer.model_dump(mode="json", include={"form", "rank", "quantization"})


def _sections(choice: Choice) -> dict[str, Any]:
    overrides = [
        matrix_override(layer, slot, spec).model_dump(mode="json", exclude_none=True)
        for layer in choice.plan
        for slot, spec in layer.quantization.items()
    ]
    factors, corrections = choice.plan.ranks, choice.plan.correction_ranks
    return {
        "decompose": {"ranks": factors} if factors else None,
        "correct": {"ranks": corrections} if corrections else None,
        "quantize": {"overrides": overrides},
    }


def _spot(choice: Choice) -> tuple[float, float]:
    return choice.bits_per_weight, choice.loss


def _spots(choices: Sequence[Choice]) -> list[tuple[float, float]]:
    return [_spot(choice) for choice in choices]


def _uniform_spots(models: Sequence[Uniform]) -> dict[str, list[tuple[float, float]]]:
    """Method → its models."""
    found: dict[str, list[tuple[float, float]]] = {}
    for model in models:
        found.setdefault(model.name.split()[0], []).append((model.bits_per_weight, model.loss))
    return found
