"""Low-rank layers for transformers models. Imports torch and transformers alone."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["LowRankLinear"]


class LowRankLinear(nn.Module):
    """y = A (B x) + bias, in place of a linear layer (out, in).

    `BLinear` (rank, in) is applied first; `ALinear` (out, rank) carries the bias. The names are
    those of the checkpoints that the authors of ASVD published.
    """

    def __init__(
        self,
        in_features: int,
        rank: int,
        out_features: int,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.BLinear = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.ALinear = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.ALinear(self.BLinear(hidden_states))
