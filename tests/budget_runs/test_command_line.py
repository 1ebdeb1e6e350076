"""Budgets on the command line: targets, plans, frontiers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from asvd_q.errors import RankError, RecipeError
from asvd_q.pipeline import frontier, prepare_known, search
from asvd_q.preparation import prepare
from asvd_q.recipe import load_recipe
from asvd_q.report.run import RunRecord
from tests.budget_runs.given import (
    OTHER_BYTES,
    WEIGHTS,
    Capture,
    Make,
    Write,
)
from tests.cli.runner import command
from tests.compression.job import hashes, quiet


def test_size_on_the_command_line(write: Write, capsys: Capture) -> None:
    path = write({"bits_per_weight": 8})
    limit = OTHER_BYTES + 5_000
    out = command(capsys, "search", path, "--size", f"{limit} B", "--json").out
    found = json.loads(out)
    assert limit - 300 < found["bytes"] <= limit
    bits = command(capsys, "search", path, "--bits-per-weight", "3.5", "--json").out
    assert 3.3 < json.loads(bits)["bits_per_weight"] <= 3.5
    own = command(capsys, "search", path, "--json").out
    assert 7.5 < json.loads(own)["bits_per_weight"] <= 8


def test_a_target_makes_a_budget_where_there_is_none(write: Write, capsys: Capture) -> None:
    path = write(None, decompose={"rank_multiple": 8})
    options = ("--set", "budget.bits=[4]", "--set", "budget.group_sizes=[16]")
    outcome = command(capsys, "run", path, "--bits-per-weight", "6", *options)
    assert outcome.code == 0, outcome.err
    record = RunRecord.read(path.parent / "run")
    assert 8 * record.layer_bytes.after <= 6 * WEIGHTS


def test_two_targets_on_the_command_line(write: Write, capsys: Capture) -> None:
    for name in ("run", "plan", "search"):
        message = command(
            capsys, name, write({"bits_per_weight": 4}), "--size", "1 GB", "--bits-per-weight", "3"
        ).message
        assert message == "error: --size and --bits-per-weight are two targets: give one of them"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "three"), "a number and a unit"),
        (("--size", "3 TiB"), "a number and a unit"),
        (("--size", ""), "budget.size"),
        (("--bits-per-weight", "0"), "budget.bits_per_weight"),
        (("--bits-per-weight", "-2"), "budget.bits_per_weight"),
        (("--bits-per-weight", "33"), "budget.bits_per_weight"),
        (("--bits-per-weight", "nan"), "budget.bits_per_weight"),
        (("--bits-per-weight", "inf"), "budget.bits_per_weight"),
    ],
)
def test_targets_that_are_none(
    options: tuple[str, str], words: str, write: Write, capsys: Capture
) -> None:
    assert words in command(capsys, "plan", write({"bits_per_weight": 4}), *options).message


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"quantize": None}, "budget needs a `quantize` section"),
        ({"calibration": None, "decompose": None}, "budget needs a `calibration` section"),
        ({"search": {"kept_ratio": 0.5}}, "search and budget both choose ranks"),
        ({"decompose": {"kept_ratio": 0.5}}, "leave kept_ratio and ranks out of `decompose`"),
        ({"decompose": {"lm_head": True}}, "leave lm_head out"),
        ({"correct": {"rank": 4}}, "leave rank and ranks out of `correct`"),
    ],
)
def test_sections_that_do_not_go_together(
    sections: dict[str, Any], words: str, write: Write, capsys: Capture, tmp_path: Path
) -> None:
    assert words in command(capsys, "run", write({"bits_per_weight": 4}, **sections)).message
    assert not (tmp_path / "run").exists()


def test_an_unknown_format(write: Write, capsys: Capture, tmp_path: Path) -> None:
    for name in ("validate", "run", "search", "frontier"):
        message = command(capsys, name, write({"bits_per_weight": 4, "format": "onyx"})).message
        assert "onyx" in message
        assert "onnx" in message
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("options", [("--size", "10 KB"), ("--bits-per-weight", "0.2")])
def test_a_target_out_of_reach(options: tuple[str, str], write: Write, capsys: Capture) -> None:
    message = command(capsys, "run", write({"bits_per_weight": 4}), *options).message
    assert message.startswith("error: budget: the target of ")
    assert "cannot be reached" in message


def test_a_plan_before_and_after_the_search(write: Write, capsys: Capture, tmp_path: Path) -> None:
    path = write({"bits_per_weight": 4})
    message = command(capsys, "plan", path).message
    assert "run `asvd-q search` on it first" in message
    assert not (tmp_path / "run").exists()
    assert command(capsys, "search", path).code == 0
    before = hashes(tmp_path)
    out = command(capsys, "plan", path).out
    assert "predicted loss increase" in out
    assert "bits per weight" in out
    found = json.loads(command(capsys, "plan", path, "--json").out)
    known = json.loads((tmp_path / "run/search/budget.json").read_text())
    assert found["predicted_loss"] == known["predicted_loss"] > 0
    assert found["predicted_bytes"] == known["bytes"]
    other = json.loads(command(capsys, "plan", path, "--bits-per-weight", "3", "--json").out)
    assert other["predicted_loss"] > found["predicted_loss"]
    assert hashes(tmp_path) == before


def test_a_plan_that_has_nothing_to_search_predicts_nothing(write: Write, capsys: Capture) -> None:
    path = write(None, decompose={"kept_ratio": 0.8})
    assert json.loads(command(capsys, "plan", path, "--json").out)["predicted_loss"] is None


def test_the_frontier(write: Write, capsys: Capture, tmp_path: Path) -> None:
    path = write({"bits_per_weight": 4})
    points = json.loads(command(capsys, "frontier", path, "--json").out)
    assert points == json.loads((tmp_path / "run/search/frontier.json").read_text())
    names = {point["name"] for point in points}
    assert {"budget", "RTN 4", "GPTQ 4", "NF4"} <= names
    own = [point for point in points if point["name"] == "budget"]
    assert len(own) > 5
    assert [point["predicted_loss"] for point in own] == sorted(
        point["predicted_loss"] for point in own
    )
    given = command(capsys, "frontier", path, "--bits-per-weight", "6, 3.5", "--json").out
    bits = [point["bits_per_weight"] for point in json.loads(given) if point["name"] == "budget"]
    assert len(bits) == 2
    assert 5.5 < bits[0] <= 6
    assert 3 < bits[1] <= 3.5
    assert "numbers and plot:" in command(capsys, "frontier", path).out


@pytest.mark.parametrize("given", ["0", "-1", "3,,x", "nan", "inf", "4,1e400"])
def test_budgets_of_a_frontier_that_are_none(given: str, write: Write, capsys: Capture) -> None:
    path = write({"bits_per_weight": 4})
    message = command(capsys, "frontier", path, f"--bits-per-weight={given}").message
    assert f"--bits-per-weight {given}: give numbers above 0" in message


def test_a_frontier_out_of_reach(make: Make) -> None:
    with pytest.raises(RankError, match=r"reach from \d\.\d+ to 32\.000 bits"):
        frontier(make({"bits_per_weight": 4}), quiet, [0.01])


def test_a_frontier_without_a_budget(make: Make) -> None:
    with pytest.raises(RecipeError, match="no `budget` section"):
        frontier(make(None, decompose={"kept_ratio": 0.8}), quiet)


def test_the_plan_of_a_search_is_a_recipe(make: Make, write: Write, tmp_path: Path) -> None:
    search(make({"bits_per_weight": 4}), quiet)
    plan, _ = prepare_known(make({"bits_per_weight": 4}))
    sections = yaml.safe_load((tmp_path / "run/search/plan.yaml").read_text())
    decompose = (
        None if sections["decompose"] is None else {"rank_multiple": 4, **sections["decompose"]}
    )
    quantize = {"method": "rtn", **sections["quantize"]}
    recipe = load_recipe(write(None, "pasted", decompose=decompose, quantize=quantize))
    assert prepare(recipe).plan.predicted_bytes == plan.plan.predicted_bytes
    assert prepare(recipe).plan.ranks == plan.plan.ranks
