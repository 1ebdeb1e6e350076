"""What a report says, before it is a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asvd_q.errors import ArtefactError
from asvd_q.evaluation.proof import Proof
from asvd_q.evaluation.tasks.record import TaskMetric, TaskResult
from asvd_q.plan import QuantSpec
from asvd_q.report.page import html_page, markdown_page, report_content
from asvd_q.report.page.grid import Grid
from asvd_q.report.page.sizes import size_grid
from asvd_q.report.page.words import from_to
from asvd_q.report.resources import StageRecord
from asvd_q.report.run import RunRecord
from tests.report.records import INT4, artefact, layer, llama, record, run_folder

_NF4 = QuantSpec(method="nf4")


def _column(grid: Grid, label: str) -> list[str]:
    [index] = [index for index, column in enumerate(grid.columns) if column.label == label]
    return [row[index].text for row in grid.rows]


def _searched(run: RunRecord, **changes: Any) -> dict[str, Any]:
    """`search.json` of a run's ranks."""
    layers = {
        one.name: {"rank": one.rank, "predicted_loss": 0.001 if one.rank else 0.0}
        for one in run.layers
    }
    content = {"predicted_loss": 0.006, "verification": None, "layers": layers}
    return content | changes


def _with_search(**more: Any) -> RunRecord:
    stages = ("search", "compress")
    return record(
        stages=tuple(
            StageRecord(stage=stage, seconds=1.0, peak_memory_bytes=1) for stage in stages
        ),
        **more,
    )


def test_headlines(tmp_path: Path) -> None:
    run = record()
    content = report_content(run_folder(tmp_path, run), run)
    found = {one.label: one for one in content.headlines}
    assert found["perplexity, docs"].value == "+5.00%"
    assert found["perplexity, docs"].detail == "10.00 → 10.50"
    assert found["KL divergence"].value == "0.0123"
    assert found["artefacts proven"].value == "1 of 1"
    bits = 8 * run.layer_bytes.after / run.parameters.before
    assert found["bits per weight"].value == f"{bits:.2f}"
    assert content.summary == (
        "8 layers: 6 in factors, 2 in codes. Codes of 4 bits (gptq, groups of 32). "
        "Exported to onnx."
    )


def test_bytes_are_all_accounted_for(tmp_path: Path) -> None:
    floats = layer("model.layers.0.self_attn.q_proj", rank=8, spec=None)
    nested = layer(
        "model.layers.0.mlp.up_proj", spec=_NF4.model_copy(update={"double_quant": True})
    )
    corrected = layer(
        "model.layers.0.mlp.down_proj",
        rank=4,
        form="correction",
        quantization={"weight": INT4, "B": None, "A": _NF4},
    )
    head = layer("lm_head", (96, 64), block=None, spec=INT4)
    run = record([floats, nested, corrected, head])
    content = report_content(run_folder(tmp_path, run), run)
    assert {part.name: part.before for part in content.sizes} == {
        "embedding, head, norms": 5000 + 2 * 96 * 64,
        "attention": 2 * 64 * 64,
        "MLP": 4 * 64 * 64,
    }
    assert sum(part.total for part in content.sizes) == run.total_bytes.after
    parts = {part.name: part.after for part in content.sizes}
    assert parts["attention"] == {"floats A": 2 * 64 * 8, "floats B": 2 * 64 * 8}
    assert parts["MLP"]["codes"] == 2 * 64 * 64 // 2
    assert parts["MLP"]["codes A"] == 64 * 4 // 2
    assert parts["MLP"]["floats B"] == 2 * 64 * 4
    assert size_grid(content.sizes).rows[-1][2].value == run.total_bytes.after


def test_layers_have_their_errors_in_the_order_of_the_stages(tmp_path: Path) -> None:
    layers = [layer("a.v_proj"), layer("a.q_proj", rank=8, reason="late")]
    run = record(layers)
    grid = report_content(run_folder(tmp_path, run), run).layers
    labels = [column.label for column in grid.columns]
    assert labels.index("error, decompose") + 1 == labels.index("error, quantize")
    assert _column(grid, "error, decompose") == ["–", "0.0200"]
    assert _column(grid, "bits") == ["4", "4"]
    assert _column(grid, "reason") == ["–", "late"]
    assert _column(grid, "kept energy")[0] == "–"


def test_tasks_stand_beside_perplexity(tmp_path: Path) -> None:
    dense = TaskResult(
        task="arc_easy",
        version="1",
        shots=0,
        samples=100,
        sha256="a" * 64,
        metrics={"acc": TaskMetric(value=0.5, error=0.05), "acc_norm": TaskMetric(value=0.4)},
        runtime="torch",
    )
    found = dense.model_copy(
        update={"metrics": {"acc": TaskMetric(value=0.45, error=0.05)}, "agreement": 0.9}
    )
    run = record(dense_tasks=(dense,), tasks=(found,))
    content = report_content(run_folder(tmp_path, run), run)
    assert [grid.title for grid in content.quality] == ["Perplexity", "Tasks"]
    assert _column(content.quality[1], "dense") == ["0.5000 ± 0.0500"]
    assert _column(content.quality[1], "change") == ["-0.0500"]
    assert "0.4500 ± 0.0500" in html_page(content)
    assert "| arc_easy | 0 | 100 | acc |" in markdown_page(content)


def test_a_search_adds_what_it_predicted(tmp_path: Path) -> None:
    run = _with_search()
    verification = {"measured_loss": 0.007, "perplexity": 10.2, "dense_perplexity": 10.0}
    folder = run_folder(tmp_path, run, _searched(run, verification=verification))
    content = report_content(folder, run)
    assert [one.title for one in content.maps] == [
        "Kept ratio of the parameters",
        "Bits per weight, scales included",
        "Relative output error",
    ]  # one loss for all has nothing to tell
    assert "1.00e-03" in _column(content.layers, "predicted loss")
    assert "0.00600" in content.search[0]
    assert "0.00700, perplexity 10.000 to 10.200" in content.search[1]


def test_the_map_of_predicted_losses_leaves_out_whole_layers(tmp_path: Path) -> None:
    run = _with_search()
    found = _searched(run)
    found["layers"]["model.layers.1.mlp.up_proj"]["predicted_loss"] = 0.01
    content = report_content(run_folder(tmp_path, run, found), run)
    [heat] = [one for one in content.maps if one.title.startswith("Predicted loss")]
    assert (heat.low, heat.high) == ("1e-03", "1e-02")
    assert ("v_proj", 0) not in heat.values
    assert heat.values["up_proj", 1] == 0.01


def test_a_search_for_another_run_is_left_alone(tmp_path: Path) -> None:
    run = _with_search()
    found = _searched(run)
    found["layers"]["model.layers.0.self_attn.q_proj"]["rank"] = 3
    content = report_content(run_folder(tmp_path, run, found), run)
    assert content.search == ()
    assert "predicted loss" not in [column.label for column in content.layers.columns]


def test_a_run_without_a_search_does_not_read_an_earlier_one(tmp_path: Path) -> None:
    run = record()
    assert report_content(run_folder(tmp_path, run, _searched(run)), run).search == ()


def test_a_budget_comes_before_ranks_and_is_compared_code_by_code(tmp_path: Path) -> None:
    run = _with_search()
    folder = run_folder(tmp_path, run, _searched(run))
    budget = _searched(run) | {
        "format": "store",
        "bits_per_weight": 3.5,
        "forms": {"factors": 6, "dense": 2},
    }
    for one in run.layers:
        done = one.model_dump(mode="json")
        budget["layers"][one.name]["quantization"] = done["quantization"]
    _write(folder / "search" / "budget.json", budget)
    assert "6 factors, 2 dense, at 3.500 bits" in report_content(folder, run).search[0]
    budget["layers"][run.layers[1].name]["quantization"] = {"weight": None}
    _write(folder / "search" / "budget.json", budget)
    assert "chosen ranks" in report_content(folder, run).search[0]


def test_a_damaged_search_is_named(tmp_path: Path) -> None:
    run = _with_search()
    folder = run_folder(tmp_path, run, {"layers": {}})
    with pytest.raises(ArtefactError, match=r"search\.json is damaged"):
        report_content(folder, run)


def test_spectra_of_another_store_are_not_its_own(tmp_path: Path) -> None:
    run = record()
    folder = run_folder(tmp_path, run)
    other = run.model_copy(update={"store_key": "other"})
    assert len(report_content(folder, run).panels) == 3
    assert report_content(folder, other).panels == ()


def test_an_artefact_that_was_not_run_says_why(tmp_path: Path) -> None:
    proof = Proof(layers=8, status="not run", detail="needs gptqmodel")
    run = record(artefacts=(artefact(), artefact("gptq", proof=proof)))
    content = report_content(run_folder(tmp_path, run), run)
    assert content.artefacts is not None
    assert _column(content.artefacts, "gptq")[1] == "not run"
    assert "needs gptqmodel" in _column(content.artefacts, "gptq")
    assert {one.label: one.value for one in content.headlines}["artefacts proven"] == "1 of 2"


def test_an_artefacts_options_are_beside_what_was_proven_with_them(tmp_path: Path) -> None:
    options = {"dtype": "float16", "accuracy_level": 4, "external_data": False}
    run = record(artefacts=(artefact(options=options), artefact("other")))
    grid = report_content(run_folder(tmp_path, run), run).artefacts
    assert grid is not None
    place = _column(grid, "").index("options")
    shown = [_column(grid, name)[place] for name in ("onnx", "other")]
    assert shown == ["dtype: float16, accuracy_level: 4, external_data: false", "–"]


def test_several_layers_of_a_kind_in_a_block_share_a_cell(tmp_path: Path) -> None:
    layers = [
        layer(f"model.layers.0.experts.{index}.up_proj", rank=8 * (index + 1)) for index in range(2)
    ]
    run = record([*layers, *llama(1)])
    heat = report_content(run_folder(tmp_path, run), run).maps[0]
    kept = [one.kept_ratio for one in run.layers if one.kind == "up_proj"]
    assert heat.values["up_proj", 0] == pytest.approx(sum(kept) / len(kept))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (2 << 20, 1 << 20, "2.00 → 1.00 MiB"),
        (2 << 20, 5 << 10, "2.00 MiB → 5.00 KiB"),
        (2 << 20, 2 << 20, "2.00 MiB"),
    ],
)
def test_bytes_share_a_unit_where_they_can(before: int, after: int, words: str) -> None:
    assert from_to(before, after) == words


def _write(path: Path, content: dict[str, Any]) -> None:

    path.write_text(json.dumps(content), encoding="utf-8")
