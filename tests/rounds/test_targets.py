"""A target that a failure has put out of reach is met all the same, or said to be unreachable."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asvd_q.compression import decompose, layer
from asvd_q.decomposition import Spectrum, spectrum
from asvd_q.errors import RankError
from asvd_q.pipeline import prepare_known, run, search
from asvd_q.recipe import Recipe
from asvd_q.rounds import ROUNDS
from tests.cli.runner import command
from tests.compression.job import hashes, quiet
from tests.rounds.given import (
    BLOCKS,
    NAME,
    OTHER_BYTES,
    SIZE,
    open_store,
    ranks,
    stages,
)


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
