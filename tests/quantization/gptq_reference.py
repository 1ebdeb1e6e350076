"""GPTQ again in numpy, as optimal brain surgery: one inverse, and one column removed at a time.

After column j is rounded, every column that is still free moves by
−(error of j) · [H⁻¹]_jk / [H⁻¹]_jj, and j is eliminated from H⁻¹. No Cholesky factor, no blocks,
no permutation of tensors. Source: GPTQ, arXiv 2210.17323, equations 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asvd_q.plan import QuantSpec
from tests.quantization.reference import round_groups

Array = NDArray[np.float64]


@dataclass
class Result:
    """Codes (out, in), and scales and zero points (out, groups).

    Attributes:
        fitted: of each group, the values (out, width) that its grids are for, and the costs
            (width,) of a unit squared error in its columns.
    """

    codes: Array
    scales: Array
    zeros: Array
    order: list[int]
    fitted: list[tuple[Array, Array]]


def quantize(
    weight: Array, gram: Array, spec: QuantSpec, grids: tuple[Array, Array] | None = None
) -> Result:
    """Round column after column; other arguments as `quantize_gptq` takes them.

    Args:
        grids: scales and zero points (out, groups); None takes those of the whole range.
    """
    rows, columns = weight.shape
    diagonal = np.diag(gram)
    order = list(np.argsort(-diagonal, kind="stable")) if spec.act_order else list(range(columns))
    hessian = gram + spec.damping * diagonal[diagonal > 0].mean() * np.eye(columns)
    inverse = np.linalg.inv(hessian)
    work = np.where(diagonal > 0, weight, 0.0)
    original = work.copy()
    width = spec.group_width(columns)
    shape = (rows, spec.groups(columns))
    result = Result(np.zeros_like(weight), np.zeros(shape), np.zeros(shape), order, [])

    def fit(group: int, members: list[int], values: Array) -> None:
        costs = np.array([left_over(hessian, order, j) for j in members])
        result.fitted.append((values[:, members], costs))
        if grids is None:
            found = round_groups(values[:, members], spec)
            result.scales[:, group], result.zeros[:, group] = found.scale, found.zero
        else:
            result.scales[:, group], result.zeros[:, group] = (part[:, group] for part in grids)

    if spec.static_groups:
        for group in range(shape[1]):
            fit(group, list(range(group * width, min(columns, (group + 1) * width))), original)
    for place, j in enumerate(order):
        group = (j if spec.static_groups else place) // width
        if not spec.static_groups and place % width == 0:
            fit(group, order[place : place + width], work)
        scale, zero = result.scales[:, group], result.zeros[:, group]
        top = 2**spec.bits - 1
        result.codes[:, j] = np.clip(np.round(work[:, j] / scale) + zero, 0, top)
        error = work[:, j] - (result.codes[:, j] - zero) * scale
        free = order[place + 1 :]
        work[:, free] -= np.outer(error, inverse[j, free] / inverse[j, j])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return result


def left_over(hessian: Array, order: list[int], j: int) -> float:
    """Output error per squared error in column j, once all later columns have adjusted."""
    later = order[order.index(j) :]
    inverse: float = np.linalg.inv(hessian[np.ix_(later, later)])[0, 0]
    return 1 / inverse
