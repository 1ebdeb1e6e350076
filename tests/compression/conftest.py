"""What tests of the loop share."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from asvd_q.compression import loop
from asvd_q.plan import LayerPlan
from asvd_q.statistics.collectors import SiteStatistics
from asvd_q.store import StoredLayer


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, SiteStatistics]:
    """Statistics that each layer was compressed with."""
    found: dict[str, SiteStatistics] = {}
    original = loop.compress_layer

    def spy(weight: Tensor, plan: LayerPlan, float_type: Any, **options: Any) -> StoredLayer:
        found[plan.name] = options["statistics"]
        return original(weight, plan, float_type, **options)

    monkeypatch.setattr(loop, "compress_layer", spy)
    return found
