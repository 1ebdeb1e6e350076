"""Exporters that other packages bring: the documented example, and packages that are at fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from asvd_q.errors import ExportError
from asvd_q.exporter_registry import (
    available_exporters,
    build_exporter,
    exporter_class,
    timed_exporters,
)
from asvd_q.report.run import RunRecord
from tests.cli.runner import command, write_recipe
from tests.support import tiny_recipe
from tests.third_party import EXAMPLE, asvd_q, install, register

GOOD = """
from pydantic import BaseModel
from asvd_q.artefact import (BasicExporter)

class Good(BasicExporter):
    name = "good"
    def stored_bytes(self, layer): return 0
    def write(self, store, folder): ...
    def open(self, folder): ...
    def read(self, folder): ...
"""


def test_the_documented_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = tmp_path / "packages"
    install(EXAMPLE, packages)
    recipe = tmp_path / "recipe.yaml"
    sections = tiny_recipe(tmp_path, blocks=2) | {
        "output": str(tmp_path / "run"),
        "decompose": {"ranks": {"*_proj": 8}, "exclude": ["q_proj"]},
        "quantize": {"bits": 4, "group_size": 16, "exclude": ["v_proj"]},
        "export": [{"format": "npz"}],
    }
    recipe.write_text(yaml.safe_dump(sections), encoding="utf-8")
    text = ("--corpus", tmp_path / "text.txt", "--window", "32", "--windows", "2", "--json")
    run, second = tmp_path / "run", tmp_path / "run/artefacts/second"
    of_run, of_artefact = asvd_q(
        ("run", recipe),
        ("export", run, "--to", "npz", "--name", "second"),
        ("evaluate", run, *text),
        ("evaluate", second, *text),
        packages=packages,
    )[2:]
    (ours,), (theirs,) = (json.loads(found)["quality"] for found in (of_run, of_artefact))
    assert ours["perplexity"] == theirs["perplexity"]
    first, other = RunRecord.read(run).artefacts
    assert first.proof.status == other.proof.status == "proven"
    assert first.proof.layers == 14
    assert first.proof.relative_error == 0
    assert abs(first.predicted.folder / first.bytes - 1) < 0.02  # the archive has headers

    monkeypatch.syspath_prepend(packages)
    planned = json.loads(command(capsys, "plan", recipe, "--json").out)["exporters"][0]
    assert planned["exporter"] == planned["artefact"] == "npz"
    assert first.predicted.model_dump() == planned["predicted"]
    refused = command(capsys, "export", run, "--to", "npz", "--option", "level=9")
    assert "level" in refused.message


def test_the_documents_show_the_code_that_is_tested() -> None:
    text = (EXAMPLE.parents[1] / "docs" / "exporters.md").read_text(encoding="utf-8")
    code = (EXAMPLE / "npz_exporter.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```\n" in text
    entry = '[project.entry-points."asvd_q.exporters"]\nnpz = "npz_exporter:NpzExporter"\n'
    assert f"```toml\n{entry}```\n" in text
    assert entry in (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 40


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ("absent_module:Good", "", "cannot be imported: ModuleNotFoundError"),
        ("broken_one:Good", "import no_such_package", "No module named 'no_such_package'"),
        ("broken_two:Good", "1 / 0", "ZeroDivisionError"),
        ("broken_three:Missing", GOOD, "no attribute 'Missing'"),
        ("broken_four:thing", "thing = 3", "is no class, its type is int"),
        ("broken_five:Good", GOOD.replace("def read", "def reed"), "lacks read"),
        ("broken_six:Good", GOOD.replace('"good"', '"better"'), "has the name 'better'"),
        ("broken_seven:Good", GOOD + "    options_model = dict\n", "no pydantic model"),
    ],
)
def test_a_package_at_fault_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
    code: str,
    words: str,
) -> None:
    register(tmp_path / "packages", "somebody-elses", "good", value, code)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    with pytest.raises(ExportError) as caught:
        exporter_class("good")
    message = str(caught.value)
    assert "'good' of the package somebody-elses" in message
    assert words in message
    assert "good" in available_exporters()
    assert timed_exporters() == ["onnx"]

    recipe = write_recipe(tmp_path, export=[{"format": "onnx"}])
    assert command(capsys, "validate", recipe).code == 0
    recipe = write_recipe(tmp_path, export=[{"format": "good"}])
    assert words in command(capsys, "validate", recipe).message


def test_what_the_instance_lacks_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = GOOD + "    def __init__(self, options): pass\n"
    register(tmp_path, "somebody-elses", "good", "forgetful:Good", code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExportError, match=r"somebody-elses .*lacks options"):
        build_exporter("good", {})


def test_a_name_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, "somebody-elses", "onnx", "taken:Good", GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExportError, match=r"asvd-q and somebody-elses each bring .*'onnx'"):
        exporter_class("onnx")
    assert exporter_class("gptq").name == "gptq"
    assert available_exporters().count("onnx") == 1
    assert timed_exporters() == []


def test_a_broken_package_does_not_disturb_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(tmp_path / "packages", "somebody-elses", "bad", "bad_module:Bad", "1 / 0")
    register(tmp_path / "packages", "demanding", "good", "demanding:Good", DEMANDING)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    recipe = write_recipe(tmp_path, export=[{"format": "onnx", "name": "small"}])
    content = json.loads(command(capsys, "plan", recipe, "--json").out)
    found = {one["exporter"]: one for one in content["exporters"]}
    assert found["onnx"]["artefact"] == "small"
    assert found["onnx"]["predicted"]["weights"] < found["onnx"]["predicted"]["folder"]
    assert "somebody-elses" in found["bad"]["refusal"]
    assert "level" in found["good"]["refusal"]


def test_what_a_format_has_against_a_model_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(tmp_path / "packages", "somebody-elses", "good", "choosy:Good", CHOOSY)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    recipe = write_recipe(tmp_path, export=[{"format": "good"}])
    refused = command(capsys, "run", recipe)
    assert refused.code == 2
    assert "model.norm: not in this model" in refused.message
    assert not (tmp_path / "run").exists()


CHOOSY = (
    GOOD
    + """
    def artefact_bytes(self, plan, source):
        from asvd_q.errors import ExportError
        raise ExportError("model.norm: not in this model")
"""
)

DEMANDING = (
    GOOD.replace("class Good", "class Options(BaseModel):\n    level: int\n\nclass Good")
    + "    options_model = Options\n"
)
