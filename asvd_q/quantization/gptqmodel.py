"""GPTQ by the gptqmodel package, on one matrix and its Gram matrix."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from asvd_q.errors import MissingExtraError
from asvd_q.plan import QuantSpec
from asvd_q.process import quiet
from asvd_q.quantization.weights import QuantizedWeight

__all__ = ["make_task", "quantize_with_gptqmodel"]

_SAMPLES = 1 << 20
"""More than gptqmodel's threshold below which it distrusts a Hessian."""

_BLOCK = 128
"""Columns whose errors it passes on together: its own default."""

_MSE_POWER = 2.0
"""Of the errors that gptqmodel's own search of the range adds up."""


def quantize_with_gptqmodel(weight: Tensor, spec: QuantSpec, gram: Tensor) -> QuantizedWeight:
    """Quantize with gptqmodel's GPTQ.

    It computes in float32, and searches the range (`clip: mse`) without weighing errors. Its
    scales are rounded to float16 before it chooses codes.

    Args:
        weight: (out, in), float64, dead columns already zero.
        gram: float64 (in, in), E[x xᵀ] up to a factor.

    Raises:
        ValueError: gptqmodel gave up, or a scale that float16 cannot hold.
        MissingExtraError: gptqmodel is not installed.
    """
    with quiet():
        task = make_task(weight, spec, gram)
        # Within one of its blocks it fits grids to weights that lack the block's own errors.
        found, scales, zeros, groups, _, _, damping, _ = task.quantize(
            blocksize=_BLOCK if spec.group_size == -1 else spec.group_size
        )
    if not torch.isfinite(scales).all():
        raise ValueError("a weight is too large for a scale in float16")
    index = groups.long()
    steps = found.double() / scales.double()[:, index]
    codes = (steps.round() + zeros.double()[:, index]).to(torch.uint8)
    notes: tuple[str, ...] = ()
    if damping > (spec.damping or 0.0):
        notes = (f"damping raised to {damping:g}",)
    columns = weight.shape[1]
    return QuantizedWeight(
        codes=codes,
        scales=scales.to(torch.float16),
        zeros=None if spec.symmetric else zeros.to(torch.uint8),
        spec=spec,
        permutation=index.argsort(stable=True).to(torch.int32) if spec.permutes(columns) else None,
        notes=notes,
    )


def make_task(weight: Tensor, spec: QuantSpec, gram: Tensor) -> Any:
    """A `gptqmodel.quantization.gptq.GPTQ` that holds the matrix and its Hessian.

    Args: as of `quantize_with_gptqmodel`.

    Raises:
        MissingExtraError: gptqmodel is not installed.
    """
    # gptqmodel starts a pool that wants more workers than a small machine has cores.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    try:
        from gptqmodel.quantization import QuantizeConfig
        from gptqmodel.quantization.gptq import GPTQ
        from gptqmodel.quantization.quantizer import Quantizer
    except ImportError as error:
        raise MissingExtraError(
            "gptqmodel", "gptq", "quantize with gptqmodel's GPTQ (backend: gptqmodel)"
        ) from error

    class Rounded(Quantizer):  # type: ignore[misc]
        """Scales are those that float16 holds, and zero points those of the rounded scales."""

        maxq: Tensor
        scale: Tensor
        zero: Tensor

        def find_params(self, x: Tensor, weight: bool = False) -> None:
            super().find_params(x, weight=weight)
            scale = self.scale.clamp(min=torch.finfo(torch.float16).smallest_normal)
            self.scale = scale.to(torch.float16).float()
            if not spec.symmetric and spec.clip == "minmax":
                low = x.amin(1, keepdim=True).clamp(max=0)
                self.zero = (-low / self.scale).round().clamp(0, int(self.maxq))

    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False)
    linear.weight.data = weight.float().cpu()
    config = QuantizeConfig(
        bits=spec.bits,
        group_size=spec.group_width(columns) if spec.group_size != -1 else -1,
        sym=spec.symmetric,
        desc_act=spec.act_order,
        static_groups=spec.static_groups,
        damp_percent=spec.damping,
        act_group_aware=False,
        mse=_MSE_POWER if spec.clip == "mse" else 0.0,
        offload_to_disk=False,
    )
    task = GPTQ(linear, config)
    task.quantizer = Rounded(config, name=task.name)
    task.quantizer.configure(perchannel=True)
    # It floors the diagonal by absolute numbers and counts dead columns as 1.
    diagonal = gram.diagonal()
    task.H = (gram / diagonal[diagonal > 0].mean()).float().cpu()
    task.nsamples = _SAMPLES
    return task
