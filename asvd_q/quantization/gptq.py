"""GPTQ: columns are rounded one after another, each making up for the errors before it.

Source: GPTQ, arXiv 2210.17323, in the form of QuIP's LDLQ (see `asvd_q.quantization.feedback`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization.feedback import Feedback, factorise
from asvd_q.quantization.grid import fit_grid
from asvd_q.quantization.rtn import quantize_rtn
from asvd_q.quantization.weights import QuantizedWeight

__all__ = ["quantize_gptq"]

_LEAF = 32
"""Columns that are rounded one by one before their errors are passed on by a matrix product."""


def quantize_gptq(weight: Tensor, spec: QuantSpec, gram: Tensor | None = None) -> QuantizedWeight:
    """Quantize so that the output error tr((W − Ŵ) G (W − Ŵ)ᵀ) stays small.

    All arithmetic is in float64. The grid of a group is fitted when its first column comes, to
    weights that already carry the errors of all earlier columns, and its scales are rounded to
    float16 before any code is chosen. With static groups all grids are fitted to W itself.
    A column that no activation reaches (G_jj = 0) is zero, as in the paper's code; where none
    is reached, the matrix is rounded to nearest.

    Args:
        weight: (out, in), floating point, finite.
        spec: bits, group size, symmetry, clipping, act order, static groups, damping, backend.
        gram: E[x xᵀ] (in, in), up to a factor.

    Returns:
        Codes in the order of the input channels; the permutation where groups follow act order.

    Raises:
        ValueError: NaN or infinity, a Gram matrix of another size or that is none, a value that
            no float16 scale can reach, or no factorisation at any damping.
        MissingExtraError: the backend gptqmodel is not installed.

    Source: GPTQ, arXiv 2210.17323, section 3; act order and static groups as in its code.
    """
    _check(weight, gram)
    assert gram is not None
    gram = gram.detach().to(device=weight.device, dtype=torch.float64)
    diagonal = gram.diagonal()
    dead = diagonal == 0
    if dead.all():
        note = "no activation reached it in the calibration: rounded to nearest"
        return replace(quantize_rtn(weight, spec), notes=(note,))
    values = weight.detach().double().masked_fill(dead, 0.0)
    if spec.backend == "gptqmodel":
        from asvd_q.quantization.gptqmodel import quantize_with_gptqmodel

        found = quantize_with_gptqmodel(values, spec, gram)
    else:
        order = diagonal.argsort(descending=True, stable=True) if spec.act_order else None
        found = _native(values, spec, gram, order)
    if not dead.any():
        return found
    note = f"{int(dead.sum())} of {len(dead)} input channels are always zero: so are their weights"
    return replace(found, notes=(note, *found.notes))


def _native(weight: Tensor, spec: QuantSpec, gram: Tensor, order: Tensor | None) -> QuantizedWeight:
    if order is None:
        feedback = factorise(gram, spec.damping or 0.0)
    else:
        feedback = factorise(gram[order][:, order], spec.damping or 0.0)
    run = _Run(weight, spec, feedback, order)
    run.quantize()
    codes = run.codes.T
    if order is not None:
        codes = torch.empty_like(codes).index_copy_(1, order, codes)
    notes: tuple[str, ...] = ()
    if feedback.retries:
        notes = (f"damping raised {feedback.retries} times, to {feedback.damping:g}",)
    return QuantizedWeight(
        codes=codes.contiguous(),
        scales=run.scales.T.to(torch.float16).contiguous(),
        zeros=None if spec.symmetric else run.zeros.T.to(torch.uint8).contiguous(),
        spec=spec,
        permutation=order.to(torch.int32)
        if order is not None and spec.permutes(weight.shape[1])
        else None,
        notes=notes,
    )


class _Run:
    """The state of one matrix; tensors are (in, out), so that a column of W is contiguous.

    Columns are numbered in the order in which they are quantized.
    """

    def __init__(
        self, weight: Tensor, spec: QuantSpec, feedback: Feedback, order: Tensor | None
    ) -> None:
        rows, self.count = weight.shape
        self.spec = spec
        self.feedback = feedback
        self.width = spec.group_width(self.count)
        where = torch.arange(self.count) if order is None else order.cpu()
        groups = where if spec.static_groups else torch.arange(self.count)
        self.group_of: list[int] = (groups // self.width).tolist()
        self.original = (weight if order is None else weight[:, order]).T.contiguous()
        self.work = self.original.clone()
        """w'_k before a column is quantized, w_k − ŵ_k afterwards."""
        self.codes = torch.empty_like(self.work, dtype=torch.uint8)
        shape = (spec.groups(self.count), rows)
        self.scales = torch.empty(shape, dtype=torch.float64, device=weight.device)
        self.zeros = torch.empty_like(self.scales)

    def quantize(self) -> None:
        groups = len(self.scales)
        if not self.spec.static_groups:
            self._groups(0, groups)
            return
        for group in range(groups):
            members = [k for k, owner in enumerate(self.group_of) if owner == group]
            self._fit(group, self.original[members], self.feedback.cost[members])
        self._columns(0, self.count)

    def _groups(self, first: int, last: int) -> None:
        """Quantize groups of columns that the errors of all earlier groups are passed on to."""
        start, stop = first * self.width, min(last * self.width, self.count)
        if last - first == 1:
            self._fit(first, self._adjusted(start, stop), self.feedback.cost[start:stop])
            self._columns(start, stop)
            return
        middle = (first + last) // 2
        self._groups(first, middle)
        self._pass_on(start, middle * self.width, stop)
        self._groups(middle, last)

    def _columns(self, start: int, stop: int) -> None:
        """Quantize columns that the errors of all earlier ones are passed on to."""
        if stop - start > _LEAF:
            middle = start + max((stop - start) // 2 // _LEAF, 1) * _LEAF
            self._columns(start, middle)
            self._pass_on(start, middle, stop)
            self._columns(middle, stop)
            return
        top = (1 << self.spec.bits) - 1
        work, upper = self.work[start:stop].T, self.feedback.upper[start:stop, start:stop].T
        code = torch.empty_like(self.work[start])
        columns = zip(
            self.group_of[start:stop],
            self.work[start:stop],
            self.original[start:stop],
            self.codes[start:stop],
            upper,
            strict=True,
        )
        last = -1
        for column, (group, values, original, stored, weights) in enumerate(columns):
            if group != last:
                scale, zero, last = self.scales[group], self.zeros[group], group
            if column:
                values.addmv_(work[:, :column], weights[:column])
            torch.div(values, scale, out=code).round_().add_(zero).clamp_(0, top)
            stored.copy_(code)
            torch.sub(original, code.sub_(zero).mul_(scale), out=values)

    def _pass_on(self, start: int, middle: int, stop: int) -> None:
        """Add the errors of columns [start, middle) to the columns [middle, stop)."""
        weights = self.feedback.upper[start:middle, middle:stop]
        self.work[middle:stop].addmm_(weights.T, self.work[start:middle])

    def _adjusted(self, start: int, stop: int) -> Tensor:
        """The columns as they would be if only those before `start` were rounded.

        `work` lacks what the columns of the group pass on to each other.
        """
        if start == 0:
            return self.original[:stop]
        upper = self.feedback.upper[start:stop, start:stop]
        passed_on = self.work[start:stop] - self.original[start:stop]
        adjustment: Tensor = torch.linalg.solve_triangular(
            upper.T, passed_on, upper=False, unitriangular=True
        )
        return self.original[start:stop] + adjustment

    def _fit(self, group: int, columns: Tensor, cost: Tensor) -> None:
        scales, zeros = fit_grid(columns.T, self.spec, cost)
        self.scales[group] = scales.double()
        self.zeros[group] = zeros


def _check(weight: Tensor, gram: Tensor | None) -> None:
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinity")
    columns = weight.shape[1]
    if gram is None or tuple(gram.shape) != (columns, columns):
        found = "there is none" if gram is None else f"it is {tuple(gram.shape)}"
        raise ValueError(f"the Gram matrix must be ({columns}, {columns}), and {found}")
    if not torch.isfinite(gram).all():
        raise ValueError("the Gram matrix holds NaN or infinity")
    if (gram.diagonal() < 0).any():
        raise ValueError("the Gram matrix has negative entries on its diagonal")
