"""The module that stands in for an embedding whose rows are integer codes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from asvd_q.errors import ExportError
from asvd_q_exporters.onnx.nbits.layout import NBitsLayout
from asvd_q_exporters.onnx.placeholders import placeholder

__all__ = ["NBitsEmbedding", "embedding_factor"]


class NBitsEmbedding(nn.Module):
    """Rows of W (vocabulary, hidden), times a factor: one `GatherBlockQuantized`.

    Args:
        layout: of W.
        dtype: of scales and rows.
        tied: the codes have the shape that a head reads, and are reshaped on the way. Otherwise
            they lie as the operator wants them.
        factor: see `embedding_factor`.
    """

    def __init__(
        self, layout: NBitsLayout, dtype: torch.dtype, *, tied: bool, factor: float | None
    ) -> None:
        super().__init__()
        self.layout = layout
        self.factor = factor
        rows, blocks, width = layout.codes_shape
        self.codes = placeholder(
            layout.codes_shape if tied else (rows, blocks * width), torch.uint8
        )
        self.scales = placeholder(layout.scales_shape, dtype)
        self.zero_points = (
            placeholder(layout.zero_points_shape, torch.uint8) if layout.zero_points else None
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        """One `GatherBlockQuantized`: rows (…, hidden) of token ids (…)."""
        layout = self.layout
        codes = self.codes.flatten(1) if self.codes.dim() == 3 else self.codes
        inputs = [codes, input_ids, self.scales]
        if self.zero_points is not None:
            inputs.append(self.zero_points)
        padded = layout.blocks * layout.block
        rows = torch.onnx.ops.symbolic(
            "com.microsoft::GatherBlockQuantized",
            inputs,
            {**layout.gather_attributes},
            dtype=self.scales.dtype,
            shape=(*input_ids.shape, padded),
            version=1,
        )
        if padded != layout.columns:
            rows = rows[..., : layout.columns]
        return rows if self.factor is None else rows * self.factor


def embedding_factor(name: str, module: nn.Module, dtype: torch.dtype) -> float | None:
    """What a class derived from torch's Embedding multiplies the rows with; None for torch's own.

    Seen on two rows of random numbers, so that no class has to be known by name. The module's
    weight is not read.

    Args:
        name: of the module, for the error.
        dtype: of the rows.

    Raises:
        ExportError: it is no embedding, or does something else with its rows.
    """
    kind = type(module).__name__
    if not isinstance(module, nn.Embedding):
        raise ExportError(
            f"{name}: the onnx format holds an embedding's codes for torch's Embedding and what "
            f"derives from it, and {kind} does not; leave the embedding in floating point"
        )
    if type(module) is nn.Embedding and module.max_norm is None:
        return None
    rows = torch.randn(
        (2, module.embedding_dim), generator=torch.Generator().manual_seed(0), dtype=torch.float32
    ).to(dtype)
    factor, found = (_looked_up(module, weight) for weight in (torch.ones_like(rows), rows))
    if factor is not None and found is not None:
        value = factor.flatten()[0]
        close = 4 * torch.finfo(dtype).eps
        expected = rows * value
        if found.shape == (1, *rows.shape) and torch.allclose(found[0], expected, close, 0.0):
            return None if value == 1 else float(value)
    raise ExportError(
        f"{name}: {kind} does more with the rows of its embedding than to multiply them with a "
        "number, which the onnx format does not hold; leave the embedding in floating point"
    )


def _looked_up(module: nn.Embedding, rows: Tensor) -> Tensor | None:
    """Both rows through the module's own forward; None where that fails."""
    probe = copy.copy(module)
    # A copy of the weight itself would give memory to all of its rows.
    probe._parameters = {**module._parameters, "weight": nn.Parameter(rows, requires_grad=False)}
    try:
        with torch.no_grad():
            found: Tensor = probe(torch.tensor([[0, 1]]))
    except Exception:  # whatever a class needs that two rows are not
        return None
    return found if found.dtype == rows.dtype else None
