"""Whole runs under a budget: its target is met by what lies on the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from asvd_q import rounds
from asvd_q.budget.solving import BudgetResult
from asvd_q.compression import loop
from asvd_q.errors import RankError, RecipeError
from asvd_q.models import SourceModel
from asvd_q.opening import STORE
from asvd_q.pipeline import frontier, prepare_known, run, search
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.preparation import Prepared, prepare, read_tokens
from asvd_q.recipe import Recipe, load_recipe
from asvd_q.report.run import RunRecord
from asvd_q.rounds import ROUNDS
from asvd_q.search.planning import plan_layer
from asvd_q.store import Store
from asvd_q_exporters.onnx import OnnxExporter
from tests.budget.given import dense, layer_ref
from tests.budget.given import recipe as given
from tests.cli.runner import command, write_recipe
from tests.compression.job import hashes, quiet
from tests.models.families import plain_model
from tests.support import tiny_recipe

BLOCKS = 2
NAME = "model.layers.1.mlp.down_proj"
WEIGHTS = BLOCKS * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
OTHER_BYTES = 4 * (2 * 8192 * 32 + (2 * BLOCKS + 1) * 32)
"""Embedding, head and norms, in float32."""

CHOICES: dict[str, Any] = {"bits": [2, 4, 8], "group_sizes": [16], "ranks": 2}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model with wren's tokenizer, and a text to calibrate it on."""
    sections = {"decompose": {"rank_multiple": 4}, "quantize": {"method": "rtn"}}
    return tiny_recipe(tmp_path_factory.mktemp("inputs"), BLOCKS) | sections


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest together."""
    monkeypatch.setattr("asvd_q.report.budget.plot_budgets", lambda *args, **options: [])


Write = Callable[..., Path]
Make = Callable[..., Recipe]


@pytest.fixture
def write(inputs: dict[str, Any], tmp_path: Path) -> Write:
    """Writes a recipe with the given target and sections replaced."""

    def written(target: dict[str, Any] | None = None, place: str = ".", **sections: Any) -> Path:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        budget = None if target is None else CHOICES | target
        return write_recipe(folder, **(inputs | {"budget": budget} | sections))

    return written


@pytest.fixture
def make(write: Write) -> Make:
    return lambda *args, **options: load_recipe(write(*args, **options))


@pytest.fixture
def compressed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that are compressed from here on."""
    names: list[str] = []
    original = loop.compress_layer

    def watched(weight: Any, plan: Any, *rest: Any, **options: Any) -> Any:
        names.append(plan.name)
        return original(weight, plan, *rest, **options)

    monkeypatch.setattr(loop, "compress_layer", watched)
    return names


def open_store(recipe: Recipe) -> Store:
    return Store.open(Path(recipe.output) / STORE, SourceModel.open(recipe.model.path))


def layer_bytes(store: Store) -> int:
    """What lies in the store, matrix by matrix."""
    return sum(
        part.nbytes for layer in store.plan for part in store.layer(layer.name).weights.values()
    )


def stages(record: RunRecord) -> list[str]:
    return [stage.stage for stage in record.stages]


@pytest.mark.parametrize(("share", "method"), [(3.5, "gptq"), (6.0, "rtn")])
def test_a_size_is_met_by_what_is_stored(share: float, method: str, make: Make) -> None:
    limit = OTHER_BYTES + int(share * WEIGHTS / 8)
    recipe = make({"size": f"{limit} B"}, quantize={"method": method})
    record = run(recipe, quiet)
    assert stages(record) == ["prepare", "search", "compress", "evaluate"]
    assert record.warnings == ()
    assert limit - 300 < record.total_bytes.after <= limit
    store = open_store(recipe)
    assert layer_bytes(store) == record.layer_bytes.after
    assert record.total_bytes.after == record.layer_bytes.after + OTHER_BYTES
    found = json.loads((Path(recipe.output) / "search/budget.json").read_text())
    assert (found["bytes"], found["format"]) == (record.total_bytes.after, "store")
    assert {layer.name: layer.form for layer in store.plan} == {
        name: layer["form"] for name, layer in found["layers"].items()
    }
    assert not (Path(recipe.output) / ROUNDS).exists()


def test_bits_per_weight(make: Make) -> None:
    record = run(make({"bits_per_weight": 5}), quiet)
    assert record.parameters.before == WEIGHTS
    assert 4.9 < 8 * record.layer_bytes.after / WEIGHTS <= 5


def test_corrections_on_offer(make: Make) -> None:
    """Real bytes, also where codes have a correction beside them."""
    recipe = make(
        {"bits_per_weight": 5, "bits": [2, 8], "correction_ranks": [4]},
        correct={"method": "after"},
        decompose=None,
    )
    record = run(recipe, quiet)
    assert 8 * layer_bytes(open_store(recipe)) / WEIGHTS <= 5
    assert {layer.form for layer in record.layers} <= {"dense", "correction"}
    assert record.warnings == ()


def test_running_again_compresses_nothing(make: Make, compressed: list[str]) -> None:
    recipe = make({"bits_per_weight": 4})
    first = run(recipe, quiet)
    count, before = len(compressed), hashes(Path(recipe.output) / STORE)
    assert count == 7 * BLOCKS
    again = run(recipe, quiet)
    assert len(compressed) == count
    assert hashes(Path(recipe.output) / STORE) == before
    assert again.layers == first.layers
    prepared, found = prepare_known(recipe)
    assert prepared.plan == open_store(recipe).plan
    assert isinstance(found, BudgetResult)
    assert found.predicted_loss == search(recipe, quiet).predicted_loss


def test_the_recipe_in_the_run_folder_makes_the_same_layers(make: Make, tmp_path: Path) -> None:
    recipe = make({"bits_per_weight": 4})
    run(recipe, quiet)
    again = load_recipe(Path(recipe.output) / "recipe.yaml")
    assert not again.searches
    again = again.model_copy(update={"output": str(tmp_path / "again")})
    run(again, quiet)
    tensors = [
        {
            name: found
            for name, found in hashes(Path(one.output) / STORE / "blocks").items()
            if name.endswith(".safetensors")
        }
        for one in (recipe, again)
    ]
    assert len(tensors[0]) == BLOCKS
    assert tensors[0] == tensors[1]


def test_a_new_target_tries_nothing_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(make({"bits_per_weight": 4}), quiet)
    monkeypatch.setattr("asvd_q.budget.solving.sweep", None)
    sizes = [
        search(make(target), quiet).choice.layer_bytes  # type: ignore[union-attr]
        for target in ({"bits_per_weight": 3}, {"bits_per_weight": 6}, {"max_loss_increase": 1e-4})
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def measured_loss(recipe: Recipe, replaced: Any = None) -> float:
    """Mean next-token loss on the calibration tokens of the plain model with layers replaced."""
    windows = read_tokens(prepare(recipe)).calibration
    assert windows is not None
    model = plain_model(Path(recipe.model.path))
    for layer in replaced.plan if replaced is not None else ():
        parts = replaced.replacement(layer.name) or {}
        if parts:
            product = parts["weight"] if "weight" in parts else parts["A"] @ parts["B"]
            model.get_submodule(layer.name).weight.data = product
    with torch.no_grad():
        logits = model(windows, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).double(), windows[:, 1:].flatten()
    )
    return float(losses)


class Replacements:
    """The matrices of a store, by layer."""

    def __init__(self, store: Store) -> None:
        self.plan = store.plan
        self._store = store

    def replacement(self, name: str) -> Any:
        return self._store.layer(name).replacement()


@pytest.mark.parametrize("as_number", [False, True])
def test_a_perplexity_is_met_as_measured(
    as_number: bool, make: Make, compressed: list[str]
) -> None:
    dense = measured_loss(make({"bits_per_weight": 4}))
    target: float | str = math.exp(dense) * 1.03 if as_number else "+3 %"
    recipe = make({"perplexity": target})
    record = run(recipe, quiet)
    loss = measured_loss(recipe, Replacements(open_store(recipe))) - dense
    assert loss <= math.log(1.03) + 1e-6
    rounds = json.loads((Path(recipe.output) / ROUNDS).read_text())
    (known,) = rounds["dense"].values()
    assert known == pytest.approx(dense, rel=1e-5)
    assert rounds["losses"][record.store_key] - known == pytest.approx(loss, abs=1e-5)
    assert 1 <= len(rounds["losses"]) <= 6
    # Of all models that were made and hold, none is smaller.
    assert record.layer_bytes.after < 32 / 8 * WEIGHTS
    count, before = len(compressed), hashes(Path(recipe.output))
    again = run(recipe, quiet)
    assert len(compressed) == count
    assert again.store_key == record.store_key
    after = hashes(Path(recipe.output))
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"run.json", "log.txt"}


def test_a_perplexity_is_of_the_text_that_it_is_measured_on(
    make: Make, inputs: dict[str, Any]
) -> None:
    """What the dense model has on other tokens is not taken for it."""
    search(make({"perplexity": 1e9}), quiet)
    other = inputs["calibration"] | {"samples": 2}
    recipe = make({"perplexity": 1e9}, calibration=other)
    with pytest.raises(RecipeError, match="run `asvd-q search` on it first"):
        prepare_known(recipe)
    search(recipe, quiet)
    prepare_known(recipe)
    rounds = json.loads((Path(recipe.output) / ROUNDS).read_text())
    assert len(set(rounds["dense"].values())) == 2
    assert measured_loss(recipe) == pytest.approx([*rounds["dense"].values()][1], rel=1e-5)


def test_a_perplexity_that_the_dense_model_does_not_have(make: Make) -> None:
    with pytest.raises(RankError, match=r"the dense model has \d+\.\d+ on the calibration tokens"):
        run(make({"perplexity": 1.5}), quiet)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compression of one layer goes wrong, which no trial has foreseen."""
    from asvd_q.compression import matrices
    from asvd_q.quantization import quantize

    current: list[str] = []
    original = loop.compress_layer

    def watched(weight: Any, plan: Any, *rest: Any, **options: Any) -> Any:
        current.append(plan.name)
        try:
            return original(weight, plan, *rest, **options)
        finally:
            current.pop()

    def quantize_or_fail(*args: Any) -> Any:
        if current == [NAME]:
            raise ValueError("no codes")
        return quantize(*args)

    monkeypatch.setattr(loop, "compress_layer", watched)
    monkeypatch.setattr(matrices, "quantize", quantize_or_fail)


def assert_pinned(record: RunRecord, reason: str) -> None:
    (kept,) = (one for one in record.layers if one.name == NAME)
    assert set(kept.quantization.values()) == {None}
    assert reason in (kept.reason or "")
    assert len(record.warnings) >= 2
    assert record.warnings[-1].startswith("the target was solved again around ")


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("target", [{"size": f"{OTHER_BYTES + 11_000} B"}, {"bits_per_weight": 7}])
def test_a_setback_is_made_up_for(
    target: dict[str, Any], make: Make, compressed: list[str]
) -> None:
    recipe = make(target)
    record = run(recipe, quiet)
    assert stages(record) == ["prepare", *2 * ["search", "compress"], "evaluate"]
    assert_pinned(record, "its quantization failed: no codes")
    assert "in float32: its quantization failed: no codes" in record.warnings[0]
    store = open_store(recipe)
    assert layer_bytes(store) == record.layer_bytes.after
    if "size" in target:
        assert record.total_bytes.after <= OTHER_BYTES + 11_000
    else:
        assert 8 * record.layer_bytes.after <= 7 * WEIGHTS
    assert store.plan == store.finished_plan
    count = len(compressed)
    again = run(recipe, quiet)
    assert len(compressed) == count
    assert (again.layers, again.warnings) == (record.layers, record.warnings)
    prepared, _ = prepare_known(recipe)
    assert prepared.plan == store.plan


def test_a_bound_on_the_error_of_single_layers(make: Make) -> None:
    found = search(make({"bits_per_weight": 6}), quiet)
    assert isinstance(found, BudgetResult)
    override = [{"match": NAME, "symmetric": False}]
    recipe = make(
        {"bits_per_weight": 6},
        quantize={"method": "rtn", "max_error": 0.12, "overrides": override},
    )
    record = run(recipe, quiet)
    assert 8 * record.layer_bytes.after <= 6 * WEIGHTS
    assert all(
        "quantize.max_error" in (one.reason or "")
        for one in record.layers
        if None in one.quantization.values()
    )


@pytest.mark.usefixtures("failing")
def test_a_setback_under_a_bound_on_the_loss(make: Make) -> None:
    """A layer that keeps more than was planned loses no more."""
    record = run(make({"max_loss_increase": 0.05}), quiet)
    assert stages(record) == ["prepare", "search", "compress", "evaluate"]
    assert len(record.warnings) == 1


@pytest.mark.usefixtures("failing")
def test_a_target_that_a_setback_puts_out_of_reach(make: Make) -> None:
    with pytest.raises(RankError, match=rf"^budget: .* cannot be reached: .*, around {NAME}$"):
        run(make({"bits_per_weight": 4}, decompose=None), quiet)


def test_the_bytes_of_onnx(make: Make) -> None:
    limit = OTHER_BYTES + 7_000
    target = {"size": f"{limit} B", "format": "onnx"}
    export = [{"format": "onnx", "accuracy_level": 0}]
    recipe = make(target, export=export)
    record = run(recipe, quiet)
    stored = sum(OnnxExporter().stored_bytes(one.as_plan()) for one in record.layers)
    assert limit - 500 < stored + OTHER_BYTES <= limit
    bits = {
        spec.bits for one in record.layers for spec in one.quantization.values() if spec is not None
    }
    assert bits <= {2, 4, 8}
    (artefact,) = record.artefacts
    assert artefact.proof.status == "proven"
    found = json.loads((Path(recipe.output) / "search/budget.json").read_text())
    assert (found["format"], found["bytes"]) == ("onnx", stored + OTHER_BYTES)


# The command line.


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


def test_a_lost_correction_breaks_a_bound_on_the_loss() -> None:
    ref = layer_ref((64, 64))
    codes = QuantSpec(bits=2, group_size=16)
    planned = plan_layer(ref, {"weight": codes, "B": None, "A": None}, 8, "float32")
    plan = Plan(float_type="float32", layers=(planned,))
    prepared = SimpleNamespace(recipe=given(budget={"max_loss_increase": 0.01}))

    def met(setback: LayerPlan) -> bool:
        return rounds._meets(cast(Prepared, prepared), plan, {ref.name: setback}, Path())

    assert met(dense(ref, None))  # floats lose nothing
    assert not met(dense(ref, codes))
