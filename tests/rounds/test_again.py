"""Rounds that were run before, or interrupted, are not run again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from asvd_q.opening import STORE
from asvd_q.pipeline import prepare_known, run, search
from asvd_q.recipe import Recipe, load_recipe
from asvd_q.rounds import ROUNDS
from tests.compression.job import hashes, quiet
from tests.rounds.given import (
    BLOCKS,
    NAME,
    REPOSITORY,
    SIZE,
    open_store,
    ranks,
)


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
