"""Corpora by name, and the protocol of published perplexities, as a recipe says them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from asvd_q.errors import RecipeError
from asvd_q.recipe import CalibrationSection, CorpusSection, EvaluateSection, Recipe
from asvd_q.recipe.build import evaluate_section
from asvd_q.recipe.named import NAMED


def evaluated(**fields: Any) -> EvaluateSection:
    return EvaluateSection.model_validate(fields)


def recipe(calibration: Any, evaluate: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"path": "model"},
            "calibration": {"corpora": [calibration]},
            "evaluate": {"corpora": [evaluate]},
        }
    )


def test_each_name_reads_its_own_parts() -> None:
    names = list(NAMED)
    assert [part.split for part in evaluated(corpora=names).corpora] == [
        "test",
        "test",
        "validation",
    ]
    calibration = CalibrationSection.model_validate({"corpora": names})
    assert [part.split for part in calibration.corpora] == ["train"] * 3
    assert [part.name for part in calibration.corpora] == names
    assert not any(part.is_file for part in calibration.corpora)
    (chosen,) = evaluated(corpus={"source": "wikitext2", "split": "validation"}).corpora
    assert chosen.split == "validation"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"source": "c4", "split": "test"}, "c4 has the splits train and validation, not 'test'"),
        ({"source": "ptb", "split": "valid"}, "splits train, validation and test, not 'valid'"),
        ({"source": "ptb", "field": "sentence"}, "leave `field` out"),
        ({"source": "wikitext-2"}, "did you mean 'wikitext2'"),
    ],
)
def test_what_a_name_cannot_be_given(fields: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        CorpusSection.model_validate(fields)


def test_the_same_text_by_either_name_is_an_overlap() -> None:
    long = "hub:Salesforce/wikitext:wikitext-2-raw-v1"
    for one, other in (("wikitext2", "wikitext2"), ("wikitext2", long), (long, "wikitext2")):
        with pytest.raises(ValidationError, match="both read"):
            recipe({"source": one, "split": "test"}, {"source": other, "split": "test"})
        assert recipe(one, other).evaluate is not None
    assert recipe("c4", "c4").evaluate is not None


def test_the_standard_protocol_brings_its_windows() -> None:
    section = evaluated(corpus="c4", protocol="standard")
    assert (section.window, section.windows) == ("context", None)
    own = evaluated(corpus="c4", protocol="standard", window=128, windows=3)
    assert (own.window, own.windows) == (128, 3)
    plain = evaluated(corpus="c4")
    assert (plain.protocol, plain.window, plain.windows) == ("windows", 512, 64)


def test_a_resolved_recipe_keeps_the_protocol() -> None:
    import yaml

    whole = Recipe.model_validate(
        {"model": {"path": "m"}, "evaluate": {"corpus": "ptb", "protocol": "standard"}}
    )
    assert Recipe.model_validate(yaml.safe_load(whole.resolved_yaml())) == whole


@pytest.mark.parametrize("window", [1, True, 3.5, "contxt", None])
def test_windows_that_are_none(window: Any) -> None:
    with pytest.raises(ValidationError, match="a whole number from 2 on, or context"):
        evaluated(corpus="ptb", window=window)


def test_options_become_a_section() -> None:
    section = evaluate_section(
        ["c4", "python-docs"],
        split=None,
        protocol="standard",
        window=None,
        windows=None,
        batch_size=2,
    )
    assert section == evaluated(corpora=["c4", "python-docs"], protocol="standard", batch_size=2)
    few = evaluate_section(
        ["ptb"], split="train", protocol="windows", window="64", windows=0, batch_size=2
    )
    assert (few.window, few.windows, few.corpora[0].split) == (64, None, "train")
    with pytest.raises(RecipeError, match=r"evaluate\.window is '64 tokens': allowed is a whole"):
        evaluate_section(
            ["ptb"], split=None, protocol="windows", window="64 tokens", windows=0, batch_size=2
        )
    with pytest.raises(RecipeError, match=r"did you mean 'standard'"):
        evaluate_section(
            ["ptb"], split=None, protocol="standrd", window=None, windows=0, batch_size=2
        )
