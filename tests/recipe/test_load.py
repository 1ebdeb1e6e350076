"""Files and overrides become a checked recipe; everything else is one clear line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asvd_q.errors import RecipeError
from asvd_q.recipe import Recipe, load_recipe

RECIPE = """
model: {path: some/model}
calibration:
  corpora: [python-docs, {source: python-source, weight: 2}]
decompose: {kept_ratio: 0.8, damping: 1e-6}
quantize:
  bits: 4
  overrides:
    - {match: "*.q_proj", bits: 8}
export:
  - {format: onnx, accuracy_level: 0}
  - {format: gptq}
evaluate: {corpora: [python-docs, python-source]}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE)
    return file


def refused(file: Path, *overrides: str) -> str:
    """The message, checked to be one line."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_and_given_values(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.version == 1
    assert recipe.output == "runs/mine"
    assert recipe.calibration is not None
    assert recipe.evaluate is not None
    assert recipe.decompose is not None
    assert [corpus.split for corpus in recipe.calibration.corpora] == ["train", "train"]
    assert [corpus.weight for corpus in recipe.calibration.corpora] == [1, 2]
    assert [corpus.split for corpus in recipe.evaluate.corpora] == ["test", "test"]
    assert recipe.decompose.damping == 1e-6
    assert recipe.export[0].options == {"accuracy_level": 0}
    assert [export.name for export in recipe.export] == ["onnx", "gptq"]


def test_importing_the_recipe_loads_no_torch() -> None:
    code = (
        "import sys, asvd_q.recipe; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_resolved_yaml_loads_to_an_equal_recipe(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["evaluate.windows=null", "quantize.dense=false"])
    resolved = tmp_path / "resolved" / "recipe.yaml"
    resolved.parent.mkdir()
    resolved.write_text(recipe.resolved_yaml())
    assert load_recipe(resolved) == recipe
    assert load_recipe(resolved).resolved_yaml() == recipe.resolved_yaml()


@pytest.mark.parametrize(
    ("override", "attribute", "value"),
    [
        ("decompose.alpha=0.4", "decompose.alpha", 0.4),
        ("decompose.alpha=1e-1", "decompose.alpha", 0.1),
        ("decompose.scaling=abs_mean", "decompose.scaling", "abs_mean"),
        ("quantize=null", "quantize", None),
        ("quantize.dense=false", "quantize.dense", False),
        ("export.0.format=gguf", "export.0.format", "gguf"),
        ("export.2.format=transformers", "export.2.format", "transformers"),
        ("export=[]", "export", ()),
        ("calibration.corpora.1.weight=3", "calibration.corpora.1.weight", 3),
        ("calibration.bos=true", "calibration.bos", True),
        ("quantize.factors.A.bits=8", "quantize.factors.A.bits", 8),
        ("decompose={ranks: {'*.q_proj': 64}}", "decompose.ranks", {"*.q_proj": 64}),
        ("model.revision='1e5'", "model.revision", "1e5"),
        ("output=a=b", "output", "a=b"),
    ],
)
def test_overrides(recipe_file: Path, override: str, attribute: str, value: object) -> None:
    found: object = load_recipe(recipe_file, [override])
    for part in attribute.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)  # type: ignore[index]
    assert found == value


def test_later_overrides_win_and_sections_are_made(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {path: m}\nquantize:\n")
    recipe = load_recipe(file, ["quantize.bits=3", "quantize.bits=5", "export.0.format=onnx"])
    assert recipe.quantize is not None
    assert recipe.quantize.bits == 5
    assert recipe.export[0].format == "onnx"


def test_an_override_leaves_an_aliased_section_alone(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {path: m}\nquantize: {dense: &p {bits: 4}, factors: {A: *p, B: *p}}")
    quantize = load_recipe(file, ["quantize.factors.A.bits=8"]).quantize
    assert quantize is not None
    assert (quantize.factors.A.bits, quantize.factors.B.bits) == (8, 4)


def test_paths_are_relative_to_the_recipe_then_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "both").mkdir(parents=True)
    (here / "only").mkdir()
    (there / "text.test.txt").write_text("a")
    file = there / "r.yaml"
    file.write_text("model: {path: both}\nevaluate: {corpus: 'text.{split}.txt'}")
    monkeypatch.chdir(here)
    recipe = load_recipe(file)
    assert recipe.model.path == str(there / "both")
    assert recipe.evaluate is not None
    assert recipe.evaluate.corpora[0].source == str(there / "text.{split}.txt")
    assert recipe.evaluate.corpora[0].name == "text"
    assert load_recipe(file, ["model.path=only"]).model.path == str(here / "only")
    assert load_recipe(file, ["model.path=owner/name"]).model.path == "owner/name"


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {path: m, revision: 2024-01-01}\nname: no\nseed: -3")
    recipe = load_recipe(file)
    assert (recipe.model.revision, recipe.name, recipe.seed) == ("2024-01-01", "no", -3)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "a recipe is a mapping with at least `model`; this is empty"),
        ("- a", "this is a list"),
        ("model: {path: m}\nmodel: {path: n}", "line 2: the key 'model' appears twice"),
        ("model: {path: a, path: b}", "line 1: the key 'path' appears twice"),
        ("model:\n  path: a\n bad: b", "line 3: "),
        ("model: [", "line 1: "),
        ("model: !!python/object:os.system {}", "line 1: could not determine a constructor"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("model: \x00", "not YAML"),
        ("[" * 3000, "nested too deeply"),
        ("{[1]: 2}", "line 1: "),
        ("model: {path: m}\n3: x", "3 is not possible as a key here"),
    ],
)
def test_text_that_is_no_recipe(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(content)
    message = refused(file)
    assert str(file) in message
    assert expected in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "absent.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refused(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("decompose.alpha", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("decompose..alpha=3", "write KEY=VALUE"),
        ("decompose.alpha=a: b: c", "line 1: mapping values are not allowed here"),
        ("export.5.format=x", "export is a list of 2: '5' must be a number from 0 to 2"),
        ("export.first.format=x", "'first' must be a number from 0 to 2"),
        (
            "evaluate.corpora.0.split=train",
            "evaluate.corpora.0 is the plain value 'python-docs' and has no 'split' in it",
        ),
    ],
)
def test_overrides_that_cannot_be_applied(recipe_file: Path, override: str, expected: str) -> None:
    message = refused(recipe_file, override)
    assert message.startswith(f"--set {override}")
    assert expected in message


def test_a_problem_is_blamed_on_what_wrote_it(recipe_file: Path) -> None:
    assert refused(recipe_file, "decompose.alpha=9").startswith("--set decompose.alpha=9: ")
    recipe_file.write_text(RECIPE.replace("bits: 4", "bits: 9"))
    assert refused(recipe_file, "seed=1").startswith(f"{recipe_file}: quantize.bits is 9")
    message = refused(recipe_file, "quantize.factors.Q.bits=3")
    assert message.startswith(f"{recipe_file} with --set quantize.factors.Q.bits=3: ")


def test_compression_fields_are_what_the_stored_bytes_depend_on(
    recipe_file: Path, tmp_path: Path
) -> None:
    fields = load_recipe(recipe_file).compression_fields()
    same = [
        "model.path=elsewhere",
        "output=runs/other",
        "name=other",
        "export=[]",
        "evaluate=null",
        "device=cpu",
        "calibration.hidden_states=disk",
    ]
    assert load_recipe(recipe_file, same).compression_fields() == fields
    for override in (
        "model.dtype=float16",
        "compute_dtype=bfloat16",
        "seed=1",
        "calibration.samples=8",
        "calibration.batch_size=8",
        "decompose.alpha=0.1",
        "decompose.sigma_split=0.3",
        "decompose.rotation=random",
        "decompose=null",
        "quantize.overrides.0.bits=3",
        "correct.rank=8",
    ):
        assert load_recipe(recipe_file, [override]).compression_fields() != fields, override


def test_compression_fields_hold_no_path(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("text")
    file = tmp_path / "r.yaml"
    file.write_text(f"model: {{path: {tmp_path}}}\ncalibration: {{corpus: c.txt}}")
    recipe = load_recipe(file)
    assert recipe.calibration is not None
    assert recipe.calibration.corpora[0].source == str(tmp_path / "c.txt")
    assert str(tmp_path) not in str(recipe.compression_fields())


def test_a_recipe_without_stages_is_a_dense_export() -> None:
    recipe = Recipe.model_validate({"model": {"path": "m"}, "export": [{"format": "onnx"}]})
    assert recipe.decompose is None
    assert recipe.quantize is None
