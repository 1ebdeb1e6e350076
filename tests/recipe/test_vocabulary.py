"""Settings of embedding and head: what is inherited, and what cannot go together."""

from __future__ import annotations

import re

import pytest
import yaml
from pydantic import ValidationError

from asvd_q.errors import RecipeError
from asvd_q.plan import QuantSpec, VocabularyPart
from asvd_q.recipe import QuantizeSection, Recipe

NAME = "model.embed_tokens"
HEAD = "lm_head"


def quantize(text: str) -> QuantizeSection:
    return QuantizeSection.model_validate(yaml.safe_load(text))


def spec(text: str, part: VocabularyPart) -> QuantSpec | None:
    return quantize(text).spec_for(HEAD if part == "head" else NAME, "weight", part)


def rtn(bits: int, group_size: int = 128, clip: str = "mse") -> QuantSpec:
    return QuantSpec.model_validate({"bits": bits, "group_size": group_size, "clip": clip})


def test_neither_is_touched_unless_it_is_asked_for() -> None:
    for part in ("embedding", "tied"):
        assert spec("{bits: 4}", part) is None  # type: ignore[arg-type]
    assert spec("{bits: 4, head: {}}", "embedding") is None
    # A head that a recipe decomposes is a layer like others.
    assert spec("{bits: 4}", "head") == rtn(4, clip="minmax")
    assert spec("{bits: 4, exclude: [lm_head]}", "head") is None
    assert not {"embedding", "head"} & quantize("{bits: 4}").model_dump().keys()


@pytest.mark.parametrize(
    ("text", "part", "expected"),
    [
        ("{bits: 4, group_size: 32, embedding: {}}", "embedding", rtn(4, 32)),
        ("{method: gptq, group_size: 32, embedding: {}}", "embedding", rtn(4, 32)),
        ("{method: nf4, embedding: {}}", "embedding", rtn(8)),
        ("{bits: 4, embedding: {bits: 8, clip: minmax}}", "embedding", rtn(8, clip="minmax")),
        ("{bits: 4, dense: {bits: 3}, embedding: {}}", "embedding", rtn(3)),
        ("{bits: 4, dense: false, embedding: {}}", "embedding", rtn(4)),
        (
            "{bits: 4, include: [q_proj], exclude: [embed_tokens], embedding: {}}",
            "embedding",
            rtn(4),
        ),
        ("{bits: 4, head: {}}", "head", rtn(4, clip="minmax")),
        ("{method: gptq, head: {bits: 3}}", "head", QuantSpec(method="gptq", bits=3)),
        ("{method: nf4, head: {}}", "head", QuantSpec(method="nf4", group_size=64)),
        ("{bits: 3, include: [q_proj], dense: false, head: {}}", "head", rtn(3, clip="minmax")),
        # One matrix: either of the two, or both where they agree.
        ("{bits: 4, embedding: {}}", "tied", rtn(4)),
        ("{bits: 4, head: {}}", "tied", rtn(4)),
        ("{bits: 4, head: {bits: 5}, embedding: {group_size: 32}}", "tied", rtn(5, 32)),
        ("{bits: 4, head: {bits: 5}, embedding: {bits: 5}}", "tied", rtn(5)),
        ("{method: gptq, embedding: {}}", "tied", rtn(4)),
        ("{method: gptq, head: {}}", "tied", QuantSpec(method="gptq")),
        ("{method: gptq, head: {}, embedding: {method: rtn}}", "tied", rtn(4)),
        ("{bits: 4, embedding: {method: gptq}}", "tied", QuantSpec(method="gptq", clip="minmax")),
        ("{method: nf4, head: {}}", "tied", rtn(8)),
    ],
)
def test_what_is_inherited(text: str, part: VocabularyPart, expected: QuantSpec) -> None:
    assert spec(text, part) == expected


def test_overrides_are_narrower_still() -> None:
    text = "{bits: 4, embedding: {bits: 8}, head: {}, overrides: [%s]}"
    section = quantize(text % "{match: embed_tokens, bits: 2}, {match: lm_head, skip: true}")
    assert section.spec_for(NAME, "weight", "embedding") == rtn(2)
    assert section.spec_for(HEAD, "weight", "head") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{embedding: {method: nf4}}", "embedding: an embedding's rows are looked up"),
        ("{embedding: {bits: 9}}", "less than or equal to 8"),
        ("{embedding: {double_quant: true}}", "double_quant is a setting of nf4"),
        ("{head: {damping: 0.1}}", "damping is a setting of gptq"),
        ("{embedding: true}", "valid dictionary"),
    ],
)
def test_settings_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        quantize(text)


@pytest.mark.parametrize(
    ("text", "part", "message"),
    [
        (
            "{embedding: {bits: 8}, head: {bits: 4}}",
            "tied",
            "embedding.bits is 8 and head.bits is 4",
        ),
        ("{embedding: {method: gptq}}", "embedding", "use method rtn"),
        ("{head: {method: nf4}}", "tied", "rows are looked up one by one"),
        ("{embedding: {}, overrides: [{match: '*', method: nf4}]}", "embedding", "rows are looked"),
        ("{embedding: {}, overrides: [{match: '*', method: gptq}]}", "embedding", "use method rtn"),
    ],
)
def test_what_the_model_does_not_allow(text: str, part: VocabularyPart, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        spec(text, part)


@pytest.mark.parametrize("key", ["embedding", "head"])
def test_gptq_of_either_needs_a_calibration(key: str) -> None:
    fields = {"model": {"path": "x"}, "quantize": {"bits": 4, key: {"method": "gptq"}}}
    with pytest.raises(ValidationError, match="gptq needs the Gram matrices"):
        Recipe.model_validate(fields)


def test_a_recipe_comes_back_as_it_was_written() -> None:
    text = {"method": "gptq", "embedding": {}, "head": {"bits": 3}}
    recipe = Recipe.model_validate(
        {"model": {"path": "x"}, "calibration": {"corpus": "python-docs"}, "quantize": text}
    )
    written = yaml.safe_load(recipe.resolved_yaml())["quantize"]
    assert (written["embedding"], written["head"]) == ({}, {"bits": 3})
    assert Recipe.model_validate(yaml.safe_load(recipe.resolved_yaml())) == recipe
    assert recipe.compression_fields()["quantize"]["head"] == {"bits": 3}
