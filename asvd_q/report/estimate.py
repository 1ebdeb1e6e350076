"""What a run will need, before it is started."""

from __future__ import annotations

import time

import torch
from pydantic import BaseModel, ConfigDict

from asvd_q.models.skeleton import Skeleton
from asvd_q.plan import LayerPlan, Part, Plan
from asvd_q.quantization.grid import search_trials
from asvd_q.recipe import CorrectSection, Recipe

__all__ = ["Estimate", "estimate"]

_PROBE = 512
"""Side of the matrix product that the machine's speed is taken from."""

_REFIT_PASSES = 7
"""Two through whole blocks, and both models up to each of about four sites of every block."""

_EIGH = 9.0
"""An eigendecomposition of n × n costs about this many n³ operations, vectors included."""

_ROUNDING = 2e-8
"""Seconds that one value takes to be rounded to its grid, in float64."""

_TRIAL = 2e-9
"""Seconds that one value takes in one trial of the MSE search, in float32."""

_INTERPRETER = 600 << 20
"""Resident memory of the libraries themselves."""


class Estimate(BaseModel):
    """Peak memory and time of the compression stage, roughly: within a factor of two.

    Evaluation and export are not in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_bytes: int
    seconds: float


def estimate(recipe: Recipe, skeleton: Skeleton, plan: Plan) -> Estimate:
    """Predict memory and time from shapes alone and one small timed matrix product."""
    blocks: dict[Part, int] = {}
    grams = 0
    for layer in plan:
        blocks[layer.part] = blocks.get(layer.part, 0) + layer.shape[0] * layer.shape[1]
    largest = max(blocks.values(), default=0)
    blocks.pop("embedding", None)  # nothing is multiplied with it
    linear = [layer for layer in plan if layer.role == "linear"]
    widths = {layer.shape[1] for layer in linear}
    outside = sum(parameter.numel() for parameter in skeleton.model.parameters())
    outside -= sum(parameter.numel() for parameter in skeleton.blocks.parameters())
    tokens = hidden = 0
    if recipe.calibration is not None:
        tokens = recipe.calibration.samples * recipe.calibration.window
        width = max(widths, default=0)
        if recipe.calibration.hidden_states == "memory":
            hidden = tokens * min(widths, default=0) * 4
        hidden += recipe.calibration.batch_size * recipe.calibration.window * width * 4 * 6
        grams = sum(width * width for width in widths) * 8 * 2
    if recipe.refits:  # the dense model's hidden states too, and two more matrices per site
        hidden, grams = 2 * hidden, 2 * grams
    memory = _INTERPRETER + 2 * largest * 4 + outside * 4 + hidden + grams
    sequential = recipe.calibration is not None and recipe.calibration.sequential
    passes = _REFIT_PASSES if recipe.refits else 2 if sequential else 1
    flops = 2.0 * tokens * sum(blocks.values()) * passes
    flops += 2.0 * 2 * tokens * sum(layer.shape[1] ** 2 for layer in linear)
    for layer in plan:
        if layer.rank is not None:
            side = min(layer.shape)
            once = 2 * _EIGH * side**3 + 8.0 * side * side * max(layer.shape)
            flops += once * _turns(layer, recipe)
    elementwise = sum(
        _turns(layer, recipe) * rows * columns * (_ROUNDING + search_trials(spec) * _TRIAL)
        for layer in plan
        for slot, (rows, columns) in layer.slot_shapes().items()
        if (spec := layer.quantization[slot]) is not None
    )
    for layer in plan:
        for slot, (rows, columns) in layer.slot_shapes().items():
            spec = layer.quantization[slot]
            if spec is not None and spec.method == "gptq":
                once = 2.0 * (2 * rows * columns**2 + columns**3)  # float64 is half as fast
                flops += once * _turns(layer, recipe)
    if recipe.decompose is not None and recipe.decompose.scaling == "fisher":
        flops += 4 * 2.0 * tokens * sum(blocks.values())
    return Estimate(memory_bytes=memory, seconds=flops / _speed() + elementwise)


def _turns(layer: LayerPlan, recipe: Recipe) -> int:
    """How often a layer's matrices are made, at most."""
    if layer.form != "correction":
        return 1
    section = recipe.correct or CorrectSection()
    return section.rounds if section.method == "alternate" else 1


def _speed() -> float:
    """Floating-point operations per second of a float32 matrix product, here and now."""
    matrix = torch.ones(_PROBE, _PROBE)
    matrix @ matrix
    start = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    return 5 * 2 * _PROBE**3 / (time.perf_counter() - start)
