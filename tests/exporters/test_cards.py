"""Programs that model cards show, run in the artefact's folder as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from asvd_q.artefact import Exporter
from asvd_q.evaluation.generation import generate
from asvd_q.exporter_registry import build_exporter
from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec
from asvd_q.store import Store
from asvd_q.usage import DescribedExporter, Usage, usage_of
from tests.exporters.checkpoints import export, store_of
from tests.exporters.corrections import Corrected, corrected_store
from tests.quantization.nf4_reference import nf4
from tests.support import WREN, hand_made_store, tiny_llama

INT4 = QuantSpec(bits=4, group_size=32)
PROMPT, TOKENS = "The first thing", 32


def factors(folder: Path, spec: QuantSpec | None) -> Store:
    """The bundled model, with factors and dense layers."""
    source = SourceModel.open(str(WREN))
    return hand_made_store(
        folder, source, lambda name, shape: (64 if "up_proj" in name else None, spec)
    )


def corrections(folder: Path) -> Store:
    source = SourceModel.open(str(WREN))
    return corrected_store(folder, source, lambda name: Corrected(INT4, 16))


MADE: Mapping[str, tuple[Callable[[Path], Store], str, dict[str, Any]]] = {
    "transformers": (lambda folder: factors(folder, None), "transformers", {}),
    "dense": (
        lambda folder: hand_made_store(
            folder, SourceModel.open(str(WREN)), lambda name, shape: (None, None)
        ),
        "transformers",
        {},
    ),
    "onnx": (lambda folder: factors(folder, INT4), "onnx", {}),
    "onnx-standard": (
        lambda folder: factors(folder, INT4),
        "onnx",
        {"operators": "standard", "accuracy_level": 0},
    ),
    "gptq": (lambda folder: factors(folder, INT4), "gptq", {}),
    "bitsandbytes": (lambda folder: factors(folder, nf4(64)), "bitsandbytes", {}),
    "compressed-tensors": (lambda folder: factors(folder, INT4), "compressed-tensors", {}),
    "peft": (corrections, "peft", {}),
}


def made(name: str, folder: Path) -> tuple[Exporter, Path, Usage]:
    make, kind, options = MADE[name]
    exporter = build_exporter(kind, options)
    written = export(exporter, make(folder / "store"), folder / "out")
    return exporter, written, usage_of(exporter, written)


def run(code: str, folder: Path, scratch: Path) -> str:
    """What a program prints; one that does not name this package cannot import it."""
    environment = os.environ | {"HF_HOME": str(scratch), "HF_HUB_OFFLINE": "1"}
    environment |= {"GPTQMODEL_CPU_WORKERS": "2", "TORCHDYNAMO_DISABLE": "1"}
    if "asvd_q." not in code:
        code = f"import sys\nsys.modules['asvd_q'] = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "custom code" not in done.stdout  # nobody is asked
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_every_program_writes_what_the_runner_does(name: str, tmp_path: Path) -> None:
    exporter, folder, usage = made(name, tmp_path)
    tokenizer = SourceModel.open(str(WREN)).tokenizer
    prompt = tokenizer(PROMPT)["input_ids"]
    tokens = generate(exporter.open(folder), prompt, max_new_tokens=TOKENS, stop=frozenset({1}))
    text = tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
    # Loaders differ in the type that they compute in, and so in ties further on.
    start = text if name.startswith("onnx") else text[: len(PROMPT) + 8]
    programs = [one for one in usage.snippets if one.title != "optimum"]
    assert len(programs) >= (2 if name in ("onnx", "gptq", "transformers") else 1)
    for program in programs:
        assert start in run(program.code, folder, tmp_path / "cache"), program.title


@pytest.mark.parametrize("genai", [True, False])
@pytest.mark.parametrize("operators", ["contrib", "standard"])
def test_runtimes_of_a_graph(genai: bool, operators: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").touch()
    (tmp_path / "model.onnx_data").touch()
    if genai:
        (tmp_path / "genai_config.json").touch()
    usage = usage_of(build_exporter("onnx", {"operators": operators}), tmp_path)
    titles = [snippet.title for snippet in usage.snippets]
    assert titles == ["ONNX Runtime", *(["ONNX Runtime GenAI"] if genai else []), "optimum"]
    assert ("onnxruntime-genai" in usage.tags) == genai
    assert "model.onnx_data" in usage.snippets[0].note
    assert ("accuracy_level" in usage.snippets[0].code) == (operators == "standard")
    for snippet in usage.snippets:
        compile(snippet.code, snippet.title, "exec")


@pytest.mark.parametrize("name", ["transformers", "dense", "gptq"])
def test_what_a_checkpoint_needs_is_said(name: str, tmp_path: Path) -> None:
    usage = made(name, tmp_path)[2]
    for snippet in usage.snippets:
        compile(snippet.code, snippet.title, "exec")
        imported = set(re.findall(r"^(?:from|import) (\w+)", snippet.code, re.M))
        assert imported <= {package.replace("-", "_") for package in snippet.needs}
    titles = [snippet.title for snippet in usage.snippets]
    trusting = ["trust_remote_code=True" in snippet.code for snippet in usage.snippets]
    if name == "dense":
        assert titles == ["transformers"]
        assert trusting == [False]
        return
    assert titles[:2] == ["transformers", "transformers with asvd-q"]
    assert trusting[:2] == [True, False]
    assert ("GPTQModel" in titles) == (name == "gptq")


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model")))
    store = store_of(tmp_path / "store", source, lambda name: (8, {}))
    for kind in ("transformers", "onnx"):
        exporter = build_exporter(kind, {})
        folder = export(exporter, store, tmp_path / kind)
        usage = usage_of(exporter, folder)
        assert not any("AutoTokenizer" in snippet.code for snippet in usage.snippets)
        assert len(usage.snippets) == (2 if kind == "transformers" else 1)
        found: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            exec(usage.snippets[-1].code, found)
        assert len(found["made"] if kind == "onnx" else found["tokens"][0]) >= 3


def test_an_exporter_that_says_nothing(tmp_path: Path) -> None:
    class Plain:
        name = "npz"

    plain = Plain()
    assert not isinstance(plain, DescribedExporter)
    usage = usage_of(plain, tmp_path)  # type: ignore[arg-type]
    assert usage.library is None
    assert usage.tags == ("npz",)
    assert usage.snippets[0].language == "bash"


def test_layers_that_differ_are_for_gptqmodel_alone(tmp_path: Path) -> None:
    source = SourceModel.open(str(WREN))
    store = hand_made_store(
        tmp_path / "store",
        source,
        lambda name, shape: (None, QuantSpec(bits=8 if "v_proj" in name else 4, group_size=32)),
    )
    exporter = build_exporter("gptq", {"loader": "gptqmodel"})
    usage = usage_of(exporter, export(exporter, store, tmp_path / "out"))
    assert [snippet.title for snippet in usage.snippets] == ["GPTQModel"]
    assert "asvd_q" not in usage.snippets[0].code
    compile(usage.snippets[0].code, "card", "exec")
