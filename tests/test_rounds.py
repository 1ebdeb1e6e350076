"""A target that a failure has put out of reach is met all the same, or said to be unreachable."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from asvd_q.compression import decompose, layer, loop, matrices
from asvd_q.decomposition import Spectrum, spectrum
from asvd_q.errors import RankError
from asvd_q.models import SourceModel
from asvd_q.opening import STORE
from asvd_q.pipeline import prepare_known, run, search
from asvd_q.plan import LayerPlan
from asvd_q.quantization import quantize
from asvd_q.recipe import Recipe, load_recipe
from asvd_q.report.run import RunRecord
from asvd_q.rounds import ROUNDS
from asvd_q.store import Store
from tests.cli.runner import command, write_recipe
from tests.compression.job import hashes, quiet
from tests.support import tiny_recipe

REPOSITORY = Path(__file__).parents[1]
BLOCKS = 3
NAME = "model.layers.1.mlp.down_proj"
OTHER_BYTES = 4 * (2 * 8192 * 32 + (2 * BLOCKS + 1) * 32)
"""Embedding, head and norms, in float32."""

SIZE = OTHER_BYTES + 20_000
"""Bytes; the layers take 26 kB dense at 8 bits, and 92 kB in floating point."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model with wren's tokenizer, and a text to calibrate it on."""
    return tiny_recipe(tmp_path_factory.mktemp("inputs"), BLOCKS)


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest together."""
    for name in ("plot_sensitivities", "plot_kept_ratios", "plot_predictions"):
        monkeypatch.setattr(f"asvd_q.report.search.{name}", lambda *args, **options: None)


@pytest.fixture
def make_recipe(inputs: dict[str, Any], tmp_path: Path) -> Callable[..., Recipe]:
    """Writes a recipe with sections replaced, and reads it."""

    def make(place: str = ".", **sections: Any) -> Recipe:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        fields: dict[str, Any] = {
            **inputs,
            "decompose": {"rank_multiple": 2},
            "search": {"size": f"{SIZE} B", "verify": False},
            "quantize": {"bits": 8, "group_size": 16},
        }
        return load_recipe(write_recipe(folder, **(fields | sections)))

    return make


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes the quantization of some layers fail.

    Returns the names of the layers that are compressed from then on.
    """

    def install(*names: str) -> list[str]:
        compressed: list[str] = []
        original = loop.compress_layer

        def watched(weight: Tensor, plan: LayerPlan, *rest: Any, **options: Any) -> Any:
            compressed.append(plan.name)
            return original(weight, plan, *rest, **options)

        def quantize_or_fail(*args: Any) -> Any:
            if compressed[-1] in names:
                raise ValueError("no codes\nsecond line")
            return quantize(*args)

        monkeypatch.setattr(loop, "compress_layer", watched)
        monkeypatch.setattr(matrices, "quantize", quantize_or_fail)
        return compressed

    return install


def stages(record: RunRecord) -> list[str]:
    return [stage.stage for stage in record.stages]


def ranks(record: RunRecord) -> dict[str, int | None]:
    return {one.name: one.rank for one in record.layers}


def open_store(recipe: Recipe) -> Store:
    return Store.open(Path(recipe.output) / STORE, SourceModel.open(recipe.model.path))


def test_nothing_is_solved_again_where_nothing_fails(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    record = run(recipe, quiet)
    assert stages(record) == ["prepare", "search", "compress", "evaluate"]
    assert record.warnings == ()
    assert record.total_bytes.after <= SIZE
    assert not (Path(recipe.output) / ROUNDS).exists()


def test_a_size_is_met_around_a_layer_that_cannot_be_quantized(
    make_recipe: Callable[..., Recipe], failing: Callable[..., list[str]]
) -> None:
    undisturbed = run(make_recipe("undisturbed"), quiet)
    failing(NAME)
    recipe = make_recipe()
    record = run(recipe, quiet)
    assert record.total_bytes.before - record.layer_bytes.before == OTHER_BYTES
    assert SIZE - 1000 < record.total_bytes.after <= SIZE
    (kept,) = (one for one in record.layers if one.name == NAME)
    assert kept.rank == ranks(undisturbed)[NAME]
    assert set(kept.quantization.values()) == {None}
    assert kept.reason == "its quantization failed: no codes"
    assert kept.bytes_after == 4 * kept.as_plan().parameters
    others = [one for one in record.layers if one.name != NAME]
    assert all(None not in one.quantization.values() for one in others)
    assert sum(one.bytes_after for one in others) < sum(
        one.bytes_after for one in undisturbed.layers if one.name != NAME
    )
    assert record.warnings == (
        f"{NAME} {'stayed dense,' if kept.rank is None else 'kept its factors'} in float32: "
        "its quantization failed: no codes",
        "the target was solved again around 1 of the layers",
    )
    assert stages(record) == ["prepare", *2 * ["search", "compress"], "evaluate"]
    store = open_store(recipe)
    assert store.plan == store.finished_plan
    assert store.key == record.store_key


def test_what_is_left_is_solved_as_well_as_before(
    make_recipe: Callable[..., Recipe], failing: Callable[..., list[str]]
) -> None:
    """With the layer left out of quantization by the recipe, the same choice is there to be made:
    so the search that was told beforehand can be no worse, and no better."""
    failing(NAME)
    record = run(make_recipe(), quiet)
    found = ranks(record)
    told = make_recipe("told", quantize={"bits": 8, "group_size": 16, "exclude": [NAME]})
    result = search(told, quiet)
    chosen = {
        name: next(form for form in forms if form.rank == found[name])
        for name, forms in result.candidates.items()
    }
    assert sum(form.bytes for form in chosen.values()) == record.layer_bytes.after
    assert sum(form.loss for form in chosen.values()) >= result.allocation.loss - 1e-12


def test_a_kept_ratio_is_met_around_a_layer_that_cannot_be_decomposed(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(search={"kept_ratio": 0.7, "verify": False})
    name = next(iter(search(recipe, quiet).ranks))

    def fail(weight: Tensor, scaling: Any, layer_name: str) -> Spectrum:
        if layer_name == name:
            raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]
        return spectrum(weight, scaling, layer_name)

    monkeypatch.setattr(decompose, "spectrum", fail)
    record = run(recipe, quiet)
    assert 0.68 < record.parameters.ratio <= 0.7
    (kept,) = (one for one in record.layers if one.name == name)
    assert (kept.form, kept.rank, kept.quantization) == ("dense", None, {"weight": None})
    assert record.warnings[0] == (
        f"{name} stayed dense, in float32: its decomposition failed: did not converge"
    )
    assert len(record.warnings) == 2


def test_a_lost_correction_is_told(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]

    monkeypatch.setattr(layer, "corrected", fail)
    record = run(
        make_recipe(decompose=None, search=None, correct={"ranks": {NAME: 4}, "include": [NAME]}),
        quiet,
    )
    assert record.warnings == (
        f"{NAME} has codes without a correction: its correction failed: did not converge",
    )


@pytest.mark.parametrize(
    "target", [{"kept_ratio": 0.7}, {"max_loss_increase": 0.05}, {"perplexity": "+5 %"}]
)
def test_a_target_that_still_holds_is_not_solved_again(
    target: dict[str, Any], make_recipe: Callable[..., Recipe], failing: Callable[..., list[str]]
) -> None:
    """A layer in floating point has the parameters that were planned, and loses no more."""
    found = search(make_recipe(search=target), quiet)
    name = next(iter(found.ranks))
    compressed = failing(name)
    record = run(make_recipe(search=target), quiet)
    assert ranks(record) == dict.fromkeys(ranks(record)) | found.ranks
    assert len(compressed) == 7 * BLOCKS
    assert record.warnings == (
        f"{name} kept its factors in float32: its quantization failed: no codes",
    )


@pytest.mark.parametrize("section", [{"ranks": {"*": 8}}, {"kept_ratio": 0.7, "rank_multiple": 2}])
def test_without_a_search_there_is_nothing_to_solve_again(
    section: dict[str, Any], make_recipe: Callable[..., Recipe], failing: Callable[..., list[str]]
) -> None:
    compressed = failing(NAME)
    record = run(make_recipe(decompose=section, search=None), quiet)
    assert len(compressed) == 7 * BLOCKS
    assert record.warnings == (
        f"{NAME} kept its factors in float32: its quantization failed: no codes",
    )
    (kept,) = (one for one in record.layers if one.reason is not None)
    assert kept.name == NAME


def added_errors(make_recipe: Callable[..., Recipe], **sections: Any) -> dict[str, float]:
    """What quantization adds to each layer, as the reasons under a bound that none meets say."""
    found = search(make_recipe("search", **sections), quiet).ranks
    quantization = {**sections["quantize"], "max_error": 1e-9}
    recipe = make_recipe("measured", decompose={"ranks": found}, search=None, quantize=quantization)
    errors = {
        one.name: float(re.findall(r"error of (\S+),", one.reason or "")[0])
        for one in run(recipe, quiet).layers
    }
    assert len(errors) == 7 * BLOCKS
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


@pytest.fixture
def bounded(make_recipe: Callable[..., Recipe]) -> Callable[..., tuple[Recipe, str]]:
    """A recipe under a bound that its one layer of 2 bits exceeds, and that layer."""
    quantization = {"bits": 8, "group_size": 16, "overrides": [{"match": NAME, "bits": 2}]}
    size = {"size": f"{SIZE} B", "verify": False}
    (worst, most), (_, second), *_ = added_errors(
        make_recipe, quantize=quantization, search=size
    ).items()
    assert worst == NAME
    assert most > 10 * second

    def make(place: str = ".", **sections: Any) -> tuple[Recipe, str]:
        settings = quantization | {"max_error": (most + second) / 2}
        return make_recipe(place, quantize=settings, search=size, **sections), worst

    return make


def test_a_bound_that_a_layer_exceeds(bounded: Callable[..., tuple[Recipe, str]]) -> None:
    recipe, worst = bounded()
    record = run(recipe, quiet)
    assert recipe.quantize is not None
    assert record.total_bytes.after <= SIZE
    found = {one.name: one for one in record.layers}
    reason = found[worst].reason
    assert reason is not None
    assert reason.endswith(f"and quantize.max_error is {recipe.quantize.max_error:g}")
    assert set(found[worst].quantization.values()) == {None}
    in_floats = [one for one in record.layers if None in one.quantization.values()]
    assert len(in_floats) < len(found)
    assert all("quantize.max_error" in (one.reason or "") for one in in_floats)
    assert len(record.warnings) == len(in_floats) + 1


def test_a_target_that_is_out_of_reach_names_the_layers(
    make_recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantization = {"bits": 8, "group_size": 16, "max_error": 1e-9}
    recipe = make_recipe(quantize=quantization)
    message = command(capsys, "run", tmp_path / "recipe.yaml").message
    assert re.search(r"the target of 2\.\d\d MiB for the whole model cannot be reached", message)
    assert re.search(
        r"These layers could not be compressed as planned: model\.layers\.0\.self_attn\.q_proj "
        r"\(its quantization failed: it adds a relative output error of \S+, and "
        r"quantize\.max_error is 1e-09\), .*\(and 16 more\)$",
        message,
    )
    before = hashes(tmp_path)
    with pytest.raises(RankError, match="and 16 more"):
        prepare_known(recipe)
    assert hashes(tmp_path) == before


def test_running_again_compresses_nothing(
    make_recipe: Callable[..., Recipe], failing: Callable[..., list[str]]
) -> None:
    compressed = failing(NAME)
    recipe = make_recipe()
    first = run(recipe, quiet)
    assert len(compressed) > 7 * BLOCKS
    folder, count = Path(recipe.output), len(compressed)
    before = hashes(folder / STORE)
    again = run(recipe, quiet)
    assert len(compressed) == count
    assert hashes(folder / STORE) == before
    assert (again.layers, again.warnings) == (first.layers, first.warnings)
    found = {name: rank for name, rank in ranks(first).items() if rank is not None}
    assert prepare_known(recipe)[0].plan == open_store(recipe).plan
    assert search(recipe, quiet).ranks == found
    assert yaml.safe_load((folder / "search/ranks.yaml").read_text())["decompose"]["ranks"] == found


def test_fresh_tries_again(
    make_recipe: Callable[..., Recipe], failing: Callable[..., list[str]]
) -> None:
    undisturbed = run(make_recipe("undisturbed"), quiet)
    failing(NAME)
    assert run(make_recipe(), quiet).warnings
    failing()
    record = run(make_recipe(), quiet, fresh=True)
    assert record.layers == undisturbed.layers
    assert record.warnings == ()


def test_the_recipe_in_the_run_folder_makes_the_same_layers(
    make_recipe: Callable[..., Recipe], failing: Callable[..., list[str]], tmp_path: Path
) -> None:
    failing(NAME)
    recipe = make_recipe()
    run(recipe, quiet)
    again = load_recipe(Path(recipe.output) / "recipe.yaml")
    assert again.search is None
    again = again.model_copy(update={"output": str(tmp_path / "again")})
    run(again, quiet)
    blocks = [hashes(Path(one.output) / STORE / "blocks") for one in (recipe, again)]
    tensors = [
        {name: found for name, found in some.items() if name.endswith(".safetensors")}
        for some in blocks
    ]
    assert len(tensors[0]) == BLOCKS
    assert tensors[0] == tensors[1]


class StoppedError(Exception):
    """Stands for any interruption that Python still sees."""


def test_interrupted_again_and_again(bounded: Callable[..., tuple[Recipe, str]]) -> None:
    """After every block of either round."""
    undisturbed, _ = bounded("undisturbed")
    run(undisturbed, quiet)
    recipe, _ = bounded()
    folder, expected = Path(recipe.output), Path(undisturbed.output)
    stops = 0
    while True:
        before = hashes(folder / STORE / "blocks")

        def stop(stage: str, done: int, total: int, before: dict[str, str] = before) -> None:
            if stage == "compressing" and hashes(folder / STORE / "blocks") != before:
                raise StoppedError

        try:
            run(recipe, stop)
        except StoppedError:
            stops += 1
        else:
            break
    assert stops == 2 * BLOCKS
    assert hashes(folder / STORE) == hashes(expected / STORE)
    assert (folder / ROUNDS).read_bytes() == (expected / ROUNDS).read_bytes()


@pytest.mark.slow
def test_killed_with_sigkill(bounded: Callable[..., tuple[Recipe, str]], tmp_path: Path) -> None:
    """While the blocks of the first round go: the one that is left is not the second's."""
    undisturbed, _ = bounded("undisturbed")
    run(undisturbed, quiet)
    recipe, _ = bounded()
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_run", str(tmp_path / "recipe.yaml")],
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    folder, expected = Path(recipe.output), Path(undisturbed.output)
    key = json.loads((folder / STORE / "store.json").read_text())["key"]
    assert key in json.loads((folder / ROUNDS).read_text())["setbacks"]
    assert len(list((folder / STORE / "blocks").iterdir())) == 2
    run(recipe, quiet)
    assert hashes(folder / STORE) == hashes(expected / STORE)


@pytest.mark.slow
def test_such_a_store_is_exported_and_proven(
    make_recipe: Callable[..., Recipe], failing: Callable[..., list[str]]
) -> None:
    failing(NAME)
    record = run(make_recipe(export=[{"format": "onnx", "accuracy_level": 0}]), quiet)
    (artefact,) = record.artefacts
    assert artefact.proof.status == "proven"
    assert artefact.proof.layers == 7 * BLOCKS
    assert record.total_bytes.after <= SIZE
