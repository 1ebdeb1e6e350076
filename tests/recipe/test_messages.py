"""Every kind of bad input has one line: the key's path, its value, and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from asvd_q.recipe import explain_validation_error
from tests.recipe.test_load import RECIPE, recipe_file, refused

__all__ = ["recipe_file"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "decompose.scalling=rms",
            "decompose.scalling is not a key here: did you mean 'scaling'? Allowed: method, "
            "scaling, alpha,",
        ),
        ("decompose.zzz=1", "decompose.zzz is not a key here. Allowed: method,"),
        ("modell=x", "modell is not a key here: did you mean 'model'?"),
        ("calibration.corpra=x", "calibration.corpra is not a key here: did you mean 'corpora'?"),
        ("quantize.dense.bts=3", "quantize.dense.bts is not a key here: did you mean 'bits'?"),
        ("quantize.factors.Q.bits=3", "quantize.factors.Q is not a key here. Allowed: aware, A, B"),
        (
            "quantize.overrides.0.mach=x",
            "quantize.overrides.0.mach is not a key here: did you mean 'match'?",
        ),
        ("calibration.corpora.1.splt=x", "calibration.corpora.1.splt is not a key here"),
        (
            "decompose.scaling=whitenin",
            "decompose.scaling is 'whitenin': did you mean 'whitening'? Allowed: 'abs_mean', "
            "'abs_max', 'rms', 'fisher', 'whitening' or 'none'",
        ),
        (
            "decompose.sigma_split=w",
            "decompose.sigma_split is 'w': allowed: 'both', 'u', 'v', or a number from 0 to 1, the "
            "power of the singular values that goes into A",
        ),
        (
            "decompose.sigma_split=1.5",
            "decompose.sigma_split is 1.5: allowed: 'both', 'u', 'v', or",
        ),
        ("decompose.sigma_split=-0.1", "decompose.sigma_split is -0.1: allowed: 'both', 'u', 'v'"),
        ("decompose.sigma_split=.nan", "decompose.sigma_split is nan: allowed: 'both', 'u', 'v'"),
        ("decompose.sigma_split=true", "decompose.sigma_split is true: allowed: 'both', 'u', 'v'"),
        ("decompose.sigma_split='0.5'", "decompose.sigma_split is '0.5': allowed: 'both', 'u',"),
        ("decompose.sigma_split=null", "decompose.sigma_split is null: allowed: 'both', 'u', 'v'"),
        ("decompose.sigma_split=[u]", "decompose.sigma_split: allowed: 'both', 'u', 'v', or a"),
        ("decompose.sigma_split={u: 1}", "decompose.sigma_split: allowed: 'both', 'u', 'v', or a"),
        (
            "correct.method=insid",
            "correct.method is 'insid': did you mean 'inside'? Allowed: 'after', 'inside' or "
            "'alternate'",
        ),
        ("correct.rnak=8", "correct.rnak is not a key here: did you mean 'rank'? Allowed: method,"),
        ("correct.rank=0", "correct.rank is 0: allowed is at least 1"),
        ("correct.ranks={}", "correct.ranks is empty: at least one entry is needed"),
        ("correct={rank: 8, ranks: {q_proj: 8}}", "correct: needs one of `rank` and `ranks`, and"),
        ("correct={method: after}", "correct: needs `rank` or `ranks`"),
        (
            "decompose.rotation=hadamar",
            "decompose.rotation is 'hadamar': did you mean 'hadamard'? Allowed: 'none', "
            "'hadamard' or 'random'",
        ),
        ("decompose.method=svd", "decompose.method is 'svd': "),
        ("device=gpu", "device is 'gpu': did you mean 'cpu'? Allowed: 'auto', 'cpu' or 'cuda'"),
        ("compute_dtype=fp32", "compute_dtype is 'fp32': "),
        ("model.dtype=bf16", "'auto', 'float32', 'float16' or 'bfloat16'"),
        ("calibration.bos=yes", "calibration.bos is 'yes': allowed: 'auto', true or false"),
        ("calibration.hidden_states=ram", "allowed: 'memory' or 'disk'"),
        ("version=2", "version is 2: allowed: 1"),
        ("decompose.alpha=9", "decompose.alpha is 9: allowed is at least 0 and at most 4"),
        ("decompose.alpha=.nan", "decompose.alpha is nan: "),
        ("decompose.alpha=much", "decompose.alpha is 'much': expected a number"),
        ("decompose.damping=0", "decompose.damping is 0: allowed is above 0"),
        (
            "decompose.kept_ratio=1.5",
            "decompose.kept_ratio is 1.5: allowed is above 0 and at most 1",
        ),
        ("decompose.rank_multiple=0", "decompose.rank_multiple is 0: allowed is at least 1"),
        ("decompose.lm_head=1", "decompose.lm_head is 1: expected true or false"),
        ("decompose.include=q_proj", "decompose.include is 'q_proj': expected a list"),
        ("decompose.ranks={q_proj: 0}", "decompose.ranks.q_proj is 0: allowed is at least 1"),
        ("decompose.ranks={'*.q': x}", "decompose.ranks.'*.q' is 'x': expected a whole number"),
        ("decompose.ranks={1: 3}", "decompose.ranks.1 is not possible as a key here"),
        (
            "decompose.ranks={a: 3}",
            "decompose: needs one of `kept_ratio` and `ranks`, and has both",
        ),
        (
            "decompose.kept_ratio=null",
            "decompose: needs `kept_ratio` or `ranks`, or the recipe a `search` or `budget` "
            "section",
        ),
        ("quantize.bits=1", "quantize.bits is 1: allowed is at least 2 and at most 8"),
        ("quantize.bits=4.0", "quantize.bits is 4.0: expected a whole number"),
        ("quantize.bits='4'", "quantize.bits is '4': expected a whole number"),
        ("quantize.bits=true", "quantize.bits is true: expected a whole number"),
        (
            "quantize.group_size=8",
            "quantize.group_size is 8: allowed are -1 (one scale per output channel) and 16 to 256",
        ),
        ("quantize.symmetric=yes", "quantize.symmetric is 'yes': expected true or false"),
        (
            "quantize.method=rtm",
            "quantize.method is 'rtm': no method of that name. Allowed: rtn, gptq, nf4",
        ),
        ("quantize.method=[rtn]", "quantize.method is a list: expected text"),
        ("quantize.group_size=600", "and 16 to 256, for nf4 32, 64, 128, 256, 512, 1024,"),
        ("quantize.group_size=1024", "quantize: for weight: group_size 1024 is not possible: use"),
        (
            "quantize.act_order=true",
            "quantize: for weight: act_order is a setting of gptq, and the method is rtn, which "
            "has bits, group_size, symmetric, clip",
        ),
        ("quantize.dense={double_quant: true}", "double_quant is a setting of nf4, and the method"),
        (
            "quantize.overrides.0.damping=0.1",
            "quantize: overrides.0 for weight: damping is a setting of gptq",
        ),
        (
            "quantize.dense={method: nf4, clip: mse}",
            "quantize: for weight: clip is a setting of rtn and gptq, and the method is nf4",
        ),
        ("quantize.dense={method: nf4, bits: 8}", "for weight: bits 8 is not possible: NF4 has 4"),
        (
            "quantize.dense={method: nf4, group_size: 48}",
            "for weight: group_size 48 is not possible for nf4: use one of 32, 64, 128, 256,",
        ),
        ("quantize.max_error=0", "quantize.max_error is 0: allowed is above 0"),
        ("quantize.max_error=5 %", "quantize.max_error is '5 %': expected a number"),
        ("quantize.damping=0", "quantize.damping is 0: allowed is above 0 and below 1"),
        ("quantize.backend=gptqmodl", "quantize.backend is 'gptqmodl': did you mean 'gptqmodel'?"),
        ("quantize.dense=true", "quantize.dense is true: allowed is false, which leaves"),
        ("quantize.dense={bits: 9}", "quantize.dense.bits is 9: allowed is at least 2"),
        ("quantize.overrides.0.bits=9", "quantize.overrides.0.bits is 9: "),
        ("quantize.overrides.1.bits=4", "quantize.overrides.1.match is missing: Pattern on the"),
        (
            "quantize.overrides.0.slot=C",
            "quantize.overrides.0.slot is 'C': allowed: 'weight', 'A' or 'B'",
        ),
        ("quantize=rtn", "quantize is 'rtn': expected a mapping"),
        ("model=null", "model is null: expected a mapping"),
        ("model={}", "model.path is missing: Model folder, relative to the recipe file"),
        ("model={pth: x}", "model.pth is not a key here: did you mean 'path'?"),
        ("model.path=''", "model.path is empty"),
        ("model.path=3", "model.path is 3: expected text, so put it in quotes"),
        ("calibration.samples=some", "calibration.samples is 'some': expected a whole number"),
        ("calibration.samples=1", "calibration: samples is 1 and there are 2 corpora"),
        ("calibration.corpus=python-docs", "calibration: has both `corpus` and `corpora`"),
        ("calibration.corpora=[]", "calibration.corpora is empty"),
        (
            "calibration.corpora=python-docs",
            "calibration.corpora is 'python-docs': expected a list",
        ),
        (
            "calibration.corpora.0=python-doc",
            "calibration.corpora.0 is 'python-doc': no corpus of that name: did you mean "
            "'python-docs'? Allowed: ",
        ),
        (
            "calibration.corpora.1.source=x",
            "calibration.corpora.1.source is 'x': no corpus of that name. Allowed: generated, ",
        ),
        ("calibration={corpus: x.csv}", "calibration.corpus is 'x.csv': no corpus of that name"),
        ("calibration={corpus: {source: x.csv}}", "calibration.corpus.source is 'x.csv': "),
        ("calibration={corpus: 'hub:name'}", "calibration.corpus is 'hub:name': "),
        ("calibration={}", "calibration.corpora is missing"),
        ("calibration.corpora.1.weight=0", "calibration.corpora.1.weight is 0: allowed is above 0"),
        (
            "calibration.corpora.1.split=dev",
            "python-source has the splits train and test, not 'dev'",
        ),
        (
            "calibration.corpora.0={source: generated, split: train}",
            "generated text has no splits: leave `split` out",
        ),
        ("evaluate.corpora.0=generated", "it is for `calibration` only"),
        ("calibration.corpora=[python-docs, python-docs]", "lists python-docs (train) twice"),
        ("calibration=null", "decompose.scaling is 'whitening' and needs activation statistics"),
        (
            "evaluate={corpus: {source: python-docs, split: train}}",
            "calibration and evaluate both read python-docs (train)",
        ),
        ("evaluate.windows=0", "evaluate.windows is 0: allowed is at least 1"),
        ("evaluate={}", "evaluate: names neither corpora nor tasks"),
        ("evaluate={tasks: [mmlu, mmlu]}", "evaluate.tasks: lists mmlu twice: name it once"),
        ("evaluate={tasks: mmlu}", "evaluate.tasks is 'mmlu': expected a list"),
        (
            "evaluate={tasks: [{task: mmlu, shots: -1}]}",
            "evaluate.tasks.0.shots is -1: allowed is at least 0",
        ),
        ("evaluate={tasks: [{name: mmlu}]}", "evaluate.tasks.0.name is not a key here"),
        ("export=onnx", "export is 'onnx': expected a list"),
        ("export.0=onnx", "export.0 is 'onnx': expected a mapping"),
        ("export.0={name: x}", "export.0.format is missing: Name of an installed exporter"),
        ("export.0.name=../x", "export.0.name is '../x': expected letters, digits"),
        ("export.0.level=[1]", "export.0: the option 'level' must be a plain value"),
        ("export.1.format=onnx", "export.1: another export is called 'onnx' already"),
        ("name=3", "name is 3: expected text, so put it in quotes"),
    ],
)
def test_message(recipe_file: Path, override: str, expected: str) -> None:
    assert expected in refused(recipe_file, override)


def test_the_number_of_further_problems_is_told(recipe_file: Path) -> None:
    message = refused(recipe_file, "quantize.bits=9", "seed=x", "decompose.alpha=-1")
    assert message.endswith("(and 2 more)")


def test_values_are_shortened_and_kept_on_one_line(recipe_file: Path) -> None:
    recipe_file.write_text(RECIPE + 'device: "' + "a\\n" * 200 + '"\n"odd\\nkey": 1\n')
    assert "'odd\\nkey' is not a key here" in refused(recipe_file)
    recipe_file.write_text(RECIPE + 'device: "' + "a\\n" * 200 + '"\n')
    assert len(refused(recipe_file)) < len(str(recipe_file)) + 150


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({}, False),
        ({"evaluate": {"corpus": "t.txt", "allow_overlap": True}}, True),
        ({"evaluate": {"corpus": {"source": "./t.txt", "split": "x"}}}, False),
        ({"evaluate": {"corpus": "u.txt"}}, True),
        ({"evaluate": {"corpus": "t.{split}.txt"}}, True),
        ({"calibration": {"corpus": "t.{split}.txt"}}, True),
    ],
)
def test_a_file_is_the_same_text_whatever_its_split_is_called(
    tmp_path: Path, changes: dict[str, object], accepted: bool
) -> None:
    import yaml

    from asvd_q.recipe import load_recipe

    for name in ("t.txt", "u.txt"):
        (tmp_path / name).write_text("text")
    recipe = {
        "model": {"path": "m"},
        "calibration": {"corpus": "t.txt"},
        "evaluate": {"corpus": "t.txt"},
    } | changes
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe))
    if accepted:
        load_recipe(file)
    else:
        assert "calibration and evaluate both read t (" in refused(file)


@pytest.mark.parametrize("section", ["decompose", "quantize"])
def test_refit_needs_sequential(section: str, recipe_file: Path) -> None:
    message = refused(recipe_file, f"{section}.refit=true", "calibration.sequential=false")
    assert f"{section}.refit fits layers" in message
    assert "set calibration.sequential: true" in message


def test_refit_needs_calibration_too(recipe_file: Path) -> None:
    overrides = ["calibration=null", "decompose.scaling=none", "decompose.refit=true"]
    assert "decompose.refit is true and needs" in refused(recipe_file, *overrides)


@pytest.mark.parametrize(
    "override",
    [
        "quantize.method=gptq",
        "quantize.factors={A: {method: gptq}}",
        "quantize.dense={method: gptq}",
        "quantize.overrides.0={match: q_proj, method: gptq}",
    ],
)
def test_gptq_needs_calibration_wherever_it_is_named(recipe_file: Path, override: str) -> None:
    overrides = ["calibration=null", "decompose.scaling=none", override]
    message = refused(recipe_file, *overrides)
    assert "quantize: the method gptq needs the Gram matrices" in message
    assert "`calibration`" in message


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("quantize", "correct makes up for what quantization loses: add a `quantize` section"),
        ("calibration", "correct needs the Gram matrices of its layers' inputs: add a"),
    ],
)
def test_corrections_need_codes_and_a_calibration(
    recipe_file: Path, missing: str, expected: str
) -> None:
    overrides = ["decompose=null", "correct.rank=8", f"{missing}=null"]
    assert expected in refused(recipe_file, *overrides)


class OptionsOfSomeExporter(BaseModel):
    model_config = ConfigDict(extra="forbid")

    accuracy_level: Literal[0, 1, 4] = 0
    shards: int = 1

    @model_validator(mode="after")
    def _fits(self) -> OptionsOfSomeExporter:
        if self.shards > 9:
            raise ValueError("shards wants more files than there are")
        return self


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"accuracy_level": 2}, "r.yaml: export.0.accuracy_level is 2: allowed: 0, 1 or 4"),
        (
            {"accuracy": 2},
            "r.yaml: export.0.accuracy is not a key here: did you mean 'accuracy_level'? "
            "Allowed: accuracy_level, shards",
        ),
        ({"shards": "x"}, "r.yaml: export.0.shards is 'x': expected a whole number"),
        ({"shards": 10}, "r.yaml: export.0: shards wants more files than there are"),
    ],
)
def test_options_of_an_exporter(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        OptionsOfSomeExporter.model_validate(options)
    message = explain_validation_error(caught.value, "export.0", "r.yaml", OptionsOfSomeExporter)
    assert message == expected
    assert "\n" not in explain_validation_error(caught.value, "export.0", "r.yaml")
