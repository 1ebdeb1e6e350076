"""From a recipe to a plan: which layers, which form, and why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from asvd_q.errors import RankError, RecipeError
from asvd_q.models import SourceModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.recipe import Recipe
from asvd_q.search.planning import make_plan
from tests.support import tiny_llama

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    return SourceModel.open(str(tiny_llama(tmp_path_factory.mktemp("model"), tied=request.param)))


def plan_of(source: SourceModel, **sections: Any) -> Plan:
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(source.path)},
            "calibration": {"corpus": "python-docs", "samples": 1, "window": 8},
            **sections,
        }
    )
    return make_plan(recipe, source, build_skeleton(source), "float32")


def by_kind(plan: Plan, kind: str) -> list[LayerPlan]:
    return [layer for layer in plan if layer.kind == kind]


def test_without_stages_every_layer_is_listed_and_left_alone(source: SourceModel) -> None:
    plan = plan_of(source)
    assert [layer.kind for layer in plan] == KINDS * 2
    assert not any(layer.changed for layer in plan)
    numel = sum(info.numel for info in source.tensors.values())
    assert plan.predicted_bytes == 4 * numel
    assert plan.kept_ratio == 1


def test_explicit_ranks_are_taken_even_where_they_cost_more(source: SourceModel) -> None:
    plan = plan_of(source, decompose={"ranks": {"*": 16, "up_proj": 64}})
    assert plan.ranks == {layer.name: 64 if layer.kind == "up_proj" else 16 for layer in plan}
    (first, _) = by_kind(plan, "up_proj")
    assert first.predicted_bytes == 4 * 64 * (96 + 64) > 4 * 96 * 64


def test_include_and_exclude(source: SourceModel) -> None:
    plan = plan_of(
        source,
        decompose={
            "ranks": {"*": 8},
            "include": ["*.mlp.*", "q_proj"],
            "exclude": ["*.layers.1.*", "gate_proj"],
        },
    )
    assert set(plan.ranks) == {
        f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    }
    left_out = [layer for layer in plan if layer.rank is None]
    assert all("decompose.include and decompose.exclude" in str(layer.reason) for layer in left_out)
    assert len(left_out) == 11


def test_uniform_ratio_counts_the_selected_layers_only(source: SourceModel) -> None:
    plan = plan_of(
        source, decompose={"kept_ratio": 0.5, "rank_multiple": 4, "include": ["*.mlp.*"]}
    )
    chosen = [layer for layer in plan if ".mlp." in layer.name]
    assert all(layer.rank is not None and layer.rank % 4 == 0 for layer in chosen)
    before = sum(layer.shape[0] * layer.shape[1] for layer in chosen)
    assert 0.45 * before < sum(layer.parameters for layer in chosen) <= 0.5 * before
    assert all(layer.rank is None for layer in plan if ".mlp." not in layer.name)


def test_factors_that_pay_in_parameters_but_not_in_bytes_stay_dense(source: SourceModel) -> None:
    """Narrow factors have more scales for their codes than the dense layer has for its own."""
    name = "model.layers.0.mlp.up_proj"
    sections = {"decompose": {"kept_ratio": 0.98, "rank_multiple": 1, "include": [name]}}
    assert plan_of(source, **sections).ranks == {name: 37}
    quantize = {"bits": 2, "group_size": 16, "symmetric": False}
    plan = plan_of(source, quantize=quantize, **sections)
    layer = plan.layer(name)
    assert (layer.form, layer.rank) == ("dense", None)
    assert str(layer.reason).startswith("factors of rank 37 would take ")
    assert layer.quantization["weight"] == QuantSpec(bits=2, group_size=16, symmetric=False)
    # 96·64 codes of 2 bits, 96·4 scales of 16 bits, as many zero points of 2 bits.
    assert layer.predicted_bytes == (96 * 64 * 2 + 96 * 4 * 18) // 8
    factors = (37 * 64 + 96 * 37) * 2 + (37 * 4 + 96 * 3) * 18
    assert f"would take {-(-factors // 8)} bytes" in str(layer.reason)


def test_the_same_factors_in_floating_point_pay(source: SourceModel) -> None:
    plan = plan_of(source, decompose={"kept_ratio": 0.5, "rank_multiple": 8})
    for layer in plan:
        out_features, in_features = layer.shape
        assert layer.rank is not None
        assert layer.predicted_bytes == 4 * layer.rank * (out_features + in_features)
        assert layer.predicted_bytes < 4 * out_features * in_features


def test_factors_left_in_floating_point_do_not_pay_against_a_quantized_layer(
    source: SourceModel,
) -> None:
    plan = plan_of(
        source,
        decompose={"kept_ratio": 0.5, "rank_multiple": 8},
        quantize={
            "bits": 4,
            "overrides": [
                {"match": "*", "slot": "A", "skip": True},
                {"match": "*", "slot": "B", "skip": True},
            ],
        },
    )
    assert plan.ranks == {}
    assert all("would take" in str(layer.reason) for layer in plan)


def test_quantization_of_each_slot_follows_the_recipe(source: SourceModel) -> None:
    plan = plan_of(
        source,
        decompose={"ranks": {"*.layers.0.*": 8}},
        quantize={"bits": 4, "group_size": 32, "dense": False, "factors": {"A": {"bits": 8}}},
    )
    for layer in plan:
        if layer.block == 0:
            assert layer.quantization == {
                "A": QuantSpec(bits=8, group_size=32),
                "B": QuantSpec(bits=4, group_size=32),
            }
        else:
            assert layer.quantization == {"weight": None}


def test_the_head_is_planned_when_asked_for_and_refused_when_tied(source: SourceModel) -> None:
    sections = {"decompose": {"ranks": {"*_proj": 8, "*": 8}, "lm_head": True}}
    if build_skeleton(source).head_is_tied:
        with pytest.raises(RecipeError, match="lm_head is the embedding's own matrix"):
            plan_of(source, **sections)
    else:
        found = [layer.name for layer in plan_of(source, **sections) if layer.block is None]
        assert found == ["lm_head"]


def test_bytes_of_everything_else_are_counted(source: SourceModel) -> None:
    plan = plan_of(source, quantize={"bits": 4})
    planned = sum(layer.shape[0] * layer.shape[1] for layer in plan)
    numel = sum(info.numel for info in source.tensors.values())
    assert plan.other_bytes == 4 * (numel - planned)


GPTQ = {
    "method": "gptq",
    "bits": 2,
    "group_size": 16,
    "factors": {"A": {"bits": 8}, "B": {"bits": 4}},
}


def test_corrected_layers_have_codes_and_factors_of_their_own_widths(source: SourceModel) -> None:
    plan = plan_of(source, quantize=GPTQ, correct={"rank": 8, "exclude": ["down_proj"]})
    corrected = [layer for layer in plan if layer.kind != "down_proj"]
    assert plan.correction_ranks == {layer.name: 8 for layer in corrected}
    for layer in corrected:
        bits = {slot: spec.bits for slot, spec in layer.quantization.items() if spec is not None}
        assert bits == {"weight": 2, "B": 4, "A": 8}
        rows, columns = layer.shape
        codes = rows * columns * 2 + 8 * columns * 4 + rows * 8 * 8
        scales = 16 * (rows * (columns // 16) + 8 * (columns // 16) + rows)
        assert layer.predicted_bytes == (codes + scales) // 8
    assert all(layer.form == "dense" and layer.changed for layer in by_kind(plan, "down_proj"))


def test_correction_ranks_by_pattern_leave_other_layers_without(source: SourceModel) -> None:
    ranks = {"*": 4, "v_proj": 16, "*.layers.1.*": 8}
    plan = plan_of(source, quantize=GPTQ, correct={"ranks": ranks, "include": ["*.self_attn.*"]})
    assert plan.correction_ranks["model.layers.0.self_attn.v_proj"] == 16
    assert plan.correction_ranks["model.layers.0.self_attn.q_proj"] == 4
    assert plan.correction_ranks["model.layers.1.self_attn.v_proj"] == 8
    assert len(plan.correction_ranks) == 8
    assert {layer.form for layer in by_kind(plan, "up_proj")} == {"dense"}


def test_factors_may_stay_in_floats_beside_the_codes(source: SourceModel) -> None:
    floats = [{"match": "*", "slot": slot, "skip": True} for slot in ("A", "B")]
    plan = plan_of(source, quantize=GPTQ | {"overrides": floats}, correct={"rank": 4})
    for layer in plan:
        assert layer.quantization["weight"] is not None
        assert layer.quantization["A"] is None
        assert layer.quantization["B"] is None


def test_a_layer_is_either_factorised_or_corrected(source: SourceModel) -> None:
    sections: dict[str, Any] = {
        "quantize": GPTQ,
        "decompose": {"ranks": {"q_proj": 8}},
        "correct": {"rank": 4},
    }
    message = r"model\.layers\.0\.self_attn\.q_proj: `decompose` makes factors of rank 8"
    with pytest.raises(RecipeError, match=message):
        plan_of(source, **sections)
    plan = plan_of(source, **sections | {"correct": {"rank": 4, "exclude": ["q_proj"]}})
    assert {layer.form for layer in by_kind(plan, "q_proj")} == {"factors"}
    assert {layer.form for layer in by_kind(plan, "k_proj")} == {"correction"}


def test_what_is_not_quantized_is_not_corrected(source: SourceModel) -> None:
    plan = plan_of(source, quantize=GPTQ | {"exclude": ["o_proj"]}, correct={"rank": 4})
    for layer in by_kind(plan, "o_proj"):
        assert layer.form == "dense"
        assert layer.reason == "its weight is not quantized, so there is nothing to correct"


@pytest.mark.parametrize(
    ("correct", "message"),
    [
        ({"rank": 65}, r"correct\.rank: 65 is above 64 for model\.layers\.0\.self_attn\.q_proj"),
        ({"ranks": {"k_proj": 33}}, r"correct\.ranks\.k_proj: rank 33 is outside 1 … 32"),
        ({"ranks": {"kproj": 3}}, r"correct\.ranks\.kproj matches no layer"),
    ],
)
def test_correction_ranks_that_no_layer_can_have(
    source: SourceModel, correct: dict[str, Any], message: str
) -> None:
    with pytest.raises(RankError, match=message):
        plan_of(source, quantize=GPTQ, correct=correct)


def test_a_correction_pattern_that_matches_nothing(source: SourceModel) -> None:
    with pytest.raises(RecipeError, match=r"correct\.exclude: 'q_prj' matches no layer"):
        plan_of(source, quantize=GPTQ, correct={"rank": 4, "exclude": ["q_prj"]})


def test_embedding_and_head_are_listed_where_they_are_quantized(source: SourceModel) -> None:
    tied = build_skeleton(source).head_is_tied
    without = plan_of(source, quantize={"bits": 4})
    numel = sum(info.numel for info in source.tensors.values())
    for given in ({"embedding": {}}, {"head": {}}, {"embedding": {"bits": 8}, "head": {}}):
        plan = plan_of(source, quantize={"bits": 4, "group_size": 32, **given})
        names = ["model.embed_tokens"] if tied or "embedding" in given else []
        names += ["lm_head"] if not tied and "head" in given else []
        outside = {layer.name: layer for layer in plan if layer.block is None}
        assert list(outside) == names
        if names[0] != "lm_head":
            assert plan.layers[0].name == names[0]
        if "lm_head" in names:
            assert plan.layers[-1].name == "lm_head"
        assert len(plan.layers) == len(without.layers) + len(names)
        planned = sum(layer.shape[0] * layer.shape[1] for layer in plan)
        assert plan.other_bytes == 4 * (numel - planned)
        for layer in outside.values():
            spec = layer.quantization["weight"]
            assert spec is not None
            # codes, and two bytes for each group of a row
            assert layer.predicted_bytes == 128 * 64 * spec.bits // 8 + 2 * 128 * 2
        assert plan.kept_ratio == without.kept_ratio == 1


def test_a_head_in_codes_is_not_decomposed(source: SourceModel) -> None:
    sections = {"decompose": {"kept_ratio": 0.5, "rank_multiple": 1}, "correct": None}
    plan = plan_of(source, quantize={"embedding": {}, "head": {}}, **sections)
    assert {layer.form for layer in plan if layer.block is None} == {"dense"}
    ratio = plan_of(source, quantize={}, **sections).kept_ratio
    assert plan.kept_ratio == ratio < 0.55


def test_settings_of_a_head_hold_for_its_factors(tmp_path: Path) -> None:
    plan = plan_of(
        SourceModel.open(str(tiny_llama(tmp_path))),
        decompose={"ranks": {"lm_head": 8}, "lm_head": True},
        quantize={"bits": 4, "head": {"bits": 6}, "factors": {"A": {"group_size": 32}}},
    )
    found = plan.layer("lm_head").quantization
    assert found == {"B": QuantSpec(bits=6), "A": QuantSpec(bits=6, group_size=32)}


def test_corrections_are_for_what_is_multiplied(source: SourceModel) -> None:
    plan = plan_of(source, quantize={"bits": 4, "embedding": {}, "head": {}}, correct={"rank": 4})
    forms = {layer.name: layer.form for layer in plan if layer.block is None}
    tied = build_skeleton(source).head_is_tied
    assert forms == {"model.embed_tokens": "dense"} | ({} if tied else {"lm_head": "correction"})


def test_an_override_may_name_the_embedding_alone_where_it_is_quantized(
    source: SourceModel,
) -> None:
    override = {"overrides": [{"match": "embed_tokens", "bits": 3}]}
    plan = plan_of(source, quantize={"bits": 4, "embedding": {}, **override})
    spec = plan.layers[0].quantization["weight"]
    assert spec is not None
    assert spec.bits == 3
    with pytest.raises(RecipeError, match="'embed_tokens' matches no layer"):
        plan_of(source, quantize={"bits": 4, **override})


def test_two_settings_for_one_matrix(source: SourceModel) -> None:
    given = {"embedding": {"bits": 8}, "head": {"bits": 4}}
    if build_skeleton(source).head_is_tied:
        with pytest.raises(RecipeError, match="the two are one matrix: give one of them"):
            plan_of(source, quantize=given)
    else:
        assert len([layer for layer in plan_of(source, quantize=given) if layer.changed]) == 16


def test_what_is_no_embedding_cannot_be_quantized(source: SourceModel) -> None:
    skeleton = dataclasses.replace(build_skeleton(source), embedding=None)
    recipe = Recipe.model_validate(
        {"model": {"path": str(source.path)}, "quantize": {"embedding": {}}}
    )
    with pytest.raises(RecipeError, match=r"^quantize\.embedding: LlamaForCausalLM begins with"):
        make_plan(recipe, source, skeleton, "float32")


def test_a_copy_of_a_tied_matrix_in_the_files_counts_once(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, tied=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    once = plan_of(SourceModel.open(str(folder)), quantize={"embedding": {}}).predicted_bytes
    save_file(tensors, folder / "model.safetensors")
    twice = plan_of(SourceModel.open(str(folder)), quantize={"embedding": {}}).predicted_bytes
    assert twice == once
