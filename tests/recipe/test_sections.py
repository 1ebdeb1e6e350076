"""What the sections say about layers and matrices, and the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from asvd_q.errors import RecipeError
from asvd_q.plan import QuantSpec
from asvd_q.quantization import METHODS
from asvd_q.recipe import (
    QUANTIZATION_METHODS,
    CalibrationSection,
    CorpusSection,
    DecomposeSection,
    QuantizeSection,
    Recipe,
    json_schema,
    load_recipe,
    matches,
)

RECIPES = Path(__file__).parents[2] / "recipes"
Q0 = "model.layers.0.self_attn.q_proj"
DOWN1 = "model.layers.1.mlp.down_proj"


def quantize(text: str) -> QuantizeSection:
    return QuantizeSection.model_validate(yaml.safe_load(text))


def test_patterns_fit_the_full_name_or_its_last_part() -> None:
    assert matches(Q0, ["q_proj"])
    assert matches(Q0, ["*.self_attn.*"])
    assert matches(Q0, ["model.layers.[01].*"])
    assert not matches(Q0, ["Q_PROJ", "self_attn", "layers.0.*"])
    assert not matches(Q0, [])


def test_the_methods_are_those_that_can_run() -> None:
    assert set(QUANTIZATION_METHODS) == set(METHODS)


def test_the_base_is_the_default_spec() -> None:
    section = QuantizeSection()
    for slot in ("weight", "A", "B"):
        assert section.spec_for(Q0, slot) == QuantSpec()  # type: ignore[arg-type]


def test_narrower_settings_win() -> None:
    section = quantize("""
        bits: 4
        group_size: 64
        factors: {A: {bits: 6}, B: {symmetric: false}}
        dense: {bits: 8}
        overrides:
          - {match: "*.q_proj", bits: 3, clip: mse}
          - {match: "model.layers.0.*", slot: A, bits: 5}
    """)
    assert section.spec_for(DOWN1, "A") == QuantSpec(bits=6, group_size=64)
    assert section.spec_for(DOWN1, "B") == QuantSpec(bits=4, group_size=64, symmetric=False)
    assert section.spec_for(DOWN1, "weight") == QuantSpec(bits=8, group_size=64)
    assert section.spec_for(Q0, "A") == QuantSpec(bits=5, group_size=64, clip="mse")
    assert section.spec_for(Q0, "weight") == QuantSpec(bits=3, group_size=64, clip="mse")


def test_a_method_brings_its_own_defaults() -> None:
    gptq, nf4 = quantize("method: gptq"), quantize("{method: nf4, double_quant: true}")
    assert gptq.spec_for(Q0, "A") == QuantSpec(method="gptq")
    assert gptq.spec_for(Q0, "A") == QuantSpec(
        method="gptq",
        bits=4,
        group_size=128,
        symmetric=True,
        clip="mse",
        act_order=False,
        static_groups=False,
        damping=0.01,
        backend="native",
    )
    assert nf4.spec_for(Q0, "weight") == QuantSpec(method="nf4", group_size=64, double_quant=True)


def test_null_is_the_default_of_the_method() -> None:
    assert quantize("{method: gptq, bits: null}") == quantize("method: gptq")
    assert quantize("{method: null}") == QuantizeSection()


def test_settings_carry_over_between_methods_of_integer_codes_alone() -> None:
    section = quantize("""
        method: gptq
        bits: 3
        group_size: 32
        symmetric: false
        damping: 0.05
        factors: {A: {method: rtn}, B: {act_order: true}}
        dense: {method: nf4}
        overrides:
          - {match: q_proj, slot: weight, method: gptq, clip: minmax}
          - {match: down_proj, slot: weight, group_size: 256}
    """)
    codes = {"bits": 3, "group_size": 32, "symmetric": False, "clip": "mse"}
    assert section.spec_for(DOWN1, "A") == QuantSpec.model_validate(codes)
    assert section.spec_for(DOWN1, "B") == QuantSpec.model_validate(
        codes | {"method": "gptq", "damping": 0.05, "act_order": True}
    )
    assert section.spec_for(Q0, "weight") == QuantSpec(method="gptq", clip="minmax")
    assert section.spec_for(DOWN1, "weight") == QuantSpec(method="nf4", group_size=256)


def test_overrides_that_disagree_are_told_with_the_layer() -> None:
    section = quantize("""
        overrides:
          - {match: q_proj, method: nf4}
          - {match: "model.layers.0.*", clip: mse}
    """)
    with pytest.raises(RecipeError, match=r"layers\.0\.self_attn\.q_proj \(A\) disagree: clip is"):
        section.spec_for(Q0, "A")
    assert section.spec_for(DOWN1, "A") == QuantSpec()


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{method: gptq, factors: {B: {act_order: true}}, dense: {method: rtn, bits: 8}}",
        "{method: nf4, overrides: [{match: q_proj, method: gptq, bits: 3}]}",
    ],
)
def test_a_section_written_out_in_full_is_an_equal_one(text: str) -> None:
    section = quantize(text)
    written = section.model_dump(mode="json")
    assert QuantizeSection.model_validate(written) == section
    foreign = set(QuantSpec.model_fields) - {"method", *METHODS[section.method or ""].settings}
    assert not foreign & set(written)


def test_what_is_left_in_floating_point() -> None:
    section = quantize("""
        exclude: [down_proj]
        dense: false
        overrides:
          - {match: k_proj, skip: true}
          - {match: v_proj, slot: B, skip: true}
          - {match: o_proj, slot: weight, skip: false, bits: 4}
          - {match: "*.self_attn.*", bits: 6}
    """)
    name = "model.layers.0.self_attn."
    assert section.spec_for(DOWN1, "A") is None
    assert section.spec_for(Q0, "weight") is None
    assert section.spec_for(name + "k_proj", "A") is None
    assert section.spec_for(name + "v_proj", "B") is None
    assert section.spec_for(name + "v_proj", "A") == QuantSpec(bits=6)
    assert section.spec_for(name + "o_proj", "weight") == QuantSpec(bits=6)
    assert quantize("include: [q_proj]").spec_for(DOWN1, "weight") is None
    undone = quantize("overrides: [{match: '*', skip: true}, {match: q_proj, skip: false}]")
    assert undone.spec_for(Q0, "A") == QuantSpec()


def test_exclude_is_stronger_than_include() -> None:
    section = DecomposeSection(kept_ratio=0.5, exclude=("down_proj",))
    assert section.selects(Q0)
    assert not section.selects(DOWN1)


@pytest.mark.parametrize(
    ("split", "power"), [("both", 0.5), ("u", 1), ("v", 0), (0, 0), (1, 1), (0.25, 0.25)]
)
def test_words_for_the_split_of_sigma_stand_for_powers(split: str | float, power: float) -> None:
    section = DecomposeSection.model_validate({"sigma_split": split})
    assert section.sigma_power == power
    assert DecomposeSection.model_validate(section.model_dump(mode="json")) == section


def test_one_corpus_in_short_form() -> None:
    short = CalibrationSection.model_validate({"corpus": "python-docs"})
    long = CalibrationSection.model_validate(
        {"corpora": [{"source": "python-docs", "split": "train"}]}
    )
    assert short == long


def test_sections_are_frozen() -> None:
    section = CorpusSection(source="python-docs")
    with pytest.raises(ValidationError):
        section.split = "test"


def test_the_json_schema_describes_every_field() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["$id"]
    for definition in [schema, *schema["$defs"].values()]:
        assert definition["description"]
        for name, field in definition["properties"].items():
            assert field.get("description"), name


def test_the_json_schema_takes_the_short_forms() -> None:
    definitions = json_schema()["$defs"]
    assert definitions["CorpusSection"]["type"] == ["object", "string"]
    assert definitions["TaskSection"]["type"] == ["object", "string"]
    for section, form in (("CalibrationSection", "oneOf"), ("EvaluateSection", "anyOf")):
        assert {"required": ["corpus"]} in definitions[section][form]
        assert "corpus" in definitions[section]["properties"]
        assert "corpora" not in definitions[section].get("required", [])


def test_the_json_schema_takes_a_word_or_a_power_of_sigma() -> None:
    field = json_schema()["$defs"]["DecomposeSection"]["properties"]["sigma_split"]
    assert field["anyOf"] == [
        {"enum": ["both", "u", "v"], "type": "string"},
        {"maximum": 1, "minimum": 0, "type": "number"},
    ]


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    return content


def test_every_shipped_recipe_is_valid() -> None:
    files = sorted(RECIPES.glob("*.yaml"))
    assert len(files) >= 16
    for file in files:
        assert isinstance(load_recipe(file), Recipe)


def without_sizes(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's content but for the model and what goes with its size."""
    sizes = {
        ("decompose", "rank_multiple"),
        ("quantize", "group_size"),
        ("budget", "size"),
        ("budget", "bits_per_weight"),
        ("export", "dtype"),
    }

    def kept(section: str, content: Any) -> Any:
        if isinstance(content, list):
            return [kept(section, part) for part in content]
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if (section, key) not in sizes}

    return {section: kept(section, part) for section, part in recipe.items() if section != "model"}


@pytest.mark.parametrize("file", sorted(RECIPES.glob("wren-*.yaml")), ids=lambda file: file.stem)
def test_every_demo_recipe_has_a_twin_that_differs_in_the_model_and_sizes_only(file: Path) -> None:
    twin = file.with_name(file.name.replace("wren", "llama-2-7b"))
    ours, theirs = read(file), read(twin)
    assert Path(load_recipe(file).model.path, "config.json").is_file()
    assert theirs["model"]["path"] == "meta-llama/Llama-2-7b-hf"
    assert without_sizes(ours) == without_sizes(theirs)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*-asvd-[gr]*.yaml")), ids=lambda f: f.stem)
def test_ranks_are_whole_groups_where_a_gptq_checkpoint_is_made(file: Path) -> None:
    """Many GPU kernels want the input width of A, which is the rank, to be full groups."""
    recipe = load_recipe(file)
    assert "gptq" in {section.format for section in recipe.export}
    assert recipe.decompose is not None
    assert recipe.quantize is not None
    assert recipe.quantize.group_size is not None
    assert recipe.decompose.rank_multiple % recipe.quantize.group_size == 0
