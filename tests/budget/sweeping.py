"""A sweep whose evidence a test looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asvd_q.budget import sweep as sweep_module
from asvd_q.budget.counting import Count
from asvd_q.budget.evidence import LayerEvidence
from asvd_q.budget.sweep import LayerTried, TrialCache, sweep
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.statistics import labels
from tests.budget.given import recipe

__all__ = ["WINDOWS", "evidence_of", "likeliest_labels", "open_model", "random_errors"]

WINDOWS = torch.randint(3, 64, (7, 12), generator=torch.Generator().manual_seed(4))


def open_model(folder: Path) -> BlockwiseModel:
    return BlockwiseModel(SourceModel.open(str(folder)))


def likeliest_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that a test can tell beforehand, in the place of drawn ones."""
    monkeypatch.setattr(labels, "draw_tokens", lambda logits, numbers: logits.argmax(-1))


def evidence_of(
    model: BlockwiseModel, folder: Path, *, sample: int, batch_size: int = 3, seed: int = 0
) -> dict[str, LayerEvidence]:
    """What a sweep collects of every layer; nothing is tried."""
    found: dict[str, LayerEvidence] = {}

    def keep(given: Any, model: Any, weight: Any, count: Any, evidence: Any, *rest: Any) -> Any:
        found[weight.name] = evidence
        return LayerTried()

    given = recipe(
        calibration={"corpus": "python-docs", "batch_size": batch_size},
        budget={"bits_per_weight": 4, "sample": sample},
        seed=seed,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "_tried", keep)
        cache = TrialCache(folder, f"{sample}-{seed}-{batch_size}".ljust(16, "-"))
        sweep(given, model, WINDOWS, Count("float32"), cache)
    return found


def random_errors(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """An error (out, in) of a weight."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1
