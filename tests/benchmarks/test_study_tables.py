"""What the results page says of studies and of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.page.result import Results
from benchmarks.page.studies import (
    alphas_table,
    cross_domain_finding,
    cross_domain_table,
    samples_table,
    scaling_finding,
)
from benchmarks.page.tasks import tasks_finding, tasks_table
from tests.benchmarks.samples import NUMBERS


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """One study of each kind, and a task."""
    for name in ("cross_domain", "scaling", "tasks"):
        NUMBERS[name].write(tmp_path / f"{name}.json")
    return Results(tmp_path)


def test_cross_domain(results: Results) -> None:
    table = cross_domain_table(results, "cross_domain")
    assert "| scaling | kept | codes | calibrated on | WikiText-2 | docs |" in table
    assert "| whitening | 0.6 | none | WikiText-2 | **+10.0 %** | +30.0 % |" in table
    assert "| whitening | 0.6 | none | docs | +30.0 % | **+10.0 %** |" in table
    found = cross_domain_finding(results, "cross_domain")
    assert "+10.0 % on the corpus that it was calibrated on, +30.0 % on another one" in found
    assert "+20.0 % calibrated on text of its own." in found
    assert "all of them" not in found


def test_scaling(results: Results) -> None:
    table = alphas_table(results, "scaling")
    assert "| 0.8 | abs_mean | +10.0 % | +20.0 % |" in table
    assert "| 0.8 | whitening, no α | +5.0 % | – |" in table
    table = samples_table(results, "scaling")
    assert "| 1 | +30.00 % | 14.14 % | 2 |" in table
    assert "| 32 | +10.00 % | – | 1 |" in table
    found = scaling_finding(results, "scaling")
    assert "each at its best power, the perplexity rises by whitening +5.0 %, abs_mean" in found
    assert found.endswith("by +30.00 % with whitening on 1 windows, and by +10.00 % on 32.")


def test_tasks(results: Results) -> None:
    table = tasks_table(results, "tasks")
    assert "| continuation | dense | 90 | acc 0.700 ± 0.050 | – | – |" in table
    assert "| compressed, ONNX Runtime, level 4 | 90 | acc 0.670 ± 0.050 | 94.0 % | 89 |" in table
    found = tasks_finding(results, "tasks")
    assert found == (
        "continuation: 0.700 dense, 0.680 compressed; artefacts answer as their store 89 of 90 at "
        "level 4."
    )
