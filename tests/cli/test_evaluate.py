"""`evaluate` and `latency` as a user calls them, on a run of the bundled model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.runner import command
from tests.support import WREN, tiny_llama

Capture = pytest.CaptureFixture[str]
_FEW = ("--corpus", "python-docs", "--window", "64", "--windows", "2")


@pytest.fixture
def loose(run_folder: Path, tmp_path: Path) -> Path:
    """The artefact where no run is."""
    return Path(shutil.copytree(run_folder / "artefacts/onnx", tmp_path / "a" / "b" / "onnx"))


@pytest.mark.parametrize("path", [".", "store", "artefacts/onnx"])
def test_quality_is_that_of_the_run(run_folder: Path, capsys: Capture, path: str) -> None:
    content = json.loads(command(capsys, "evaluate", run_folder / path, *_FEW, "--json").out)
    (found,) = content["quality"]
    record = json.loads((run_folder / "run.json").read_text())
    (expected,), (dense,) = record["quality"], record["dense_quality"]
    for key in ("perplexity", "kl", "agreement"):
        assert found[key] == pytest.approx(expected[key], rel=1e-3), key
    assert found["tokens"] == expected["tokens"] == 2 * 63
    assert found["dense_perplexity"] == pytest.approx(dense["perplexity"], rel=1e-6)
    assert found["change"] == pytest.approx(found["perplexity"] / dense["perplexity"] - 1)
    assert (content["reference"], content["note"], content["speed"]) == ("wren", None, None)


def test_the_table_names_what_was_read(run_folder: Path, capsys: Capture) -> None:
    ended = command(capsys, "evaluate", run_folder, *_FEW)
    head, row = ended.out.splitlines()[1:3]
    for column in ("corpus", "split", "perplexity", "dense", "change", "KL", "same arg max"):
        assert column in head
    assert row.split()[:6] == ["python-docs", "test", "2", "×", "64", "126"]
    assert "torch" in row
    alone = command(capsys, "evaluate", run_folder, *_FEW, "--reference", "none")
    assert alone.out.splitlines()[2].split()[7:11] == ["–"] * 4


def test_a_model_folder_is_compared_with_nothing(capsys: Capture) -> None:
    content = json.loads(command(capsys, "evaluate", WREN, *_FEW, "--json").out)
    (found,) = content["quality"]
    assert content["reference"] is content["note"] is found["kl"] is None
    same = command(capsys, "evaluate", WREN, *_FEW, "--reference", WREN, "--json")
    (found,) = json.loads(same.out)["quality"]
    assert (found["kl"], found["agreement"], found["change"]) == (0, 1, 0)


def test_a_loose_artefact_needs_to_be_told(loose: Path, capsys: Capture) -> None:
    alone = command(capsys, "evaluate", loose, *_FEW)
    assert "not compared with the dense model" in alone.out
    assert "lies in no run folder; say where it is with --model" in alone.out
    told = json.loads(command(capsys, "evaluate", loose, *_FEW, "--model", WREN, "--json").out)
    assert told["quality"][0]["kl"] > 0
    quiet = command(capsys, "evaluate", loose, *_FEW, "--reference", "none")
    assert "not compared" not in quiet.out


def test_another_model_is_no_dense_one(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    changed = Path(shutil.copytree(WREN, tmp_path / "changed"))
    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"] *= 1.5
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    artefact = run_folder / "artefacts/onnx"
    message = command(capsys, "evaluate", artefact, *_FEW, "--model", changed).message
    assert "its weights are not those" in message
    compared = command(capsys, "evaluate", artefact, *_FEW, "--reference", changed, "--json")
    assert json.loads(compared.out)["reference"] == "changed"
    other = tiny_llama(tmp_path / "other")
    message = command(capsys, "evaluate", artefact, *_FEW, "--reference", other).message
    assert "has a vocabulary of 128 tokens, and the tokenizer of" in message


@pytest.mark.parametrize(
    ("problem", "says"),
    [("absent", "is not there any more"), ("changed", "has other weights by now")],
)
def test_a_run_whose_model_is_gone(
    problem: str, says: str, run_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder / "artefacts", run / "artefacts")
    record = json.loads((run_folder / "run.json").read_text())
    path = tmp_path / "model"
    if problem == "changed":
        tiny_llama(path)
    (run / "run.json").write_text(json.dumps(record | {"source_path": str(path)}))
    ended = command(capsys, "evaluate", run / "artefacts/onnx", *_FEW)
    assert f"{path} {says}" in ended.out


def test_the_standard_protocol(capsys: Capture) -> None:
    arguments = ("--corpus", "python-docs", "--protocol", "standard", "--windows", "1", "--json")
    (found,) = json.loads(command(capsys, "evaluate", WREN, *arguments).out)["quality"]
    assert (found["protocol"], found["window"], found["windows"]) == ("standard", 1024, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--protocol", "standrd"), "did you mean 'standard'"),
        (("--window", "contxt"), "a whole number from 2 on, or context"),
        (("--window", "1025"), "evaluate.window is 1025, and the model's context is 1024 tokens"),
        (("--corpus", "wikitext-2"), "did you mean 'wikitext2'"),
        (("--corpus", "c4", "--split", "test"), "c4 has the splits train and validation"),
        (("--batch", "1,x"), "--batch 1,x: give whole numbers above 0"),
        (("--reference", "no/where/at/all"), "there is no folder no/where/at/all"),
    ],
)
def test_what_cannot_be_evaluated(arguments: tuple[str, ...], says: str, capsys: Capture) -> None:
    assert says in command(capsys, "evaluate", WREN, *arguments).message


@pytest.mark.slow
def test_speed_and_memory(run_folder: Path, capsys: Capture) -> None:
    numbers = ("--batch", "2", "--prompt", "16", "--tokens", "2", "--rounds", "1")
    arguments = (*_FEW, "--speed", *numbers, "--threads", "1")
    content = json.loads(
        command(capsys, "evaluate", run_folder / "artefacts/onnx", *arguments, "--json").out
    )
    (speed,) = content["speed"]
    assert (speed["batch"], speed["prompt"], speed["tokens"]) == (2, 16, 2)
    assert speed["decode_tokens_per_second"] > 0
    weights = (run_folder / "artefacts/onnx/model.onnx").stat().st_size
    assert speed["peak_memory_bytes"] - speed["imported_memory_bytes"] > weights / 2
    table = command(capsys, "evaluate", run_folder, *arguments).out
    assert "peak memory" in table
    assert "2 × 16" in table


def test_latency_of_every_kind_of_path(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    numbers, plot = tmp_path / "latency.json", tmp_path / "latency.svg"
    ended = command(
        capsys,
        "latency",
        f"dense={WREN}",
        run_folder,
        f"onnx={run_folder / 'artefacts/onnx'}",
        *("--batch", "1,2", "--prompt", "4", "--tokens", "3", "--rounds", "1", "--threads", "1"),
        *("--json", numbers, "--plot", plot),
    )
    assert ended.code == 0, ended.err
    rows = [line.split() for line in ended.out.splitlines()[2:8]]
    assert [row[0] for row in rows] == ["dense", "run", "onnx"] * 2
    assert ["".join(row[1:4]) for row in rows] == ["1×4"] * 3 + ["2×4"] * 3
    content = json.loads(numbers.read_text())
    assert content["compared_with"] == "dense"
    assert content["threads"] == 1
    assert list(content["models"]) == ["dense", "run", "onnx"]
    for result in content["results"]:
        (turn,) = result["turns"]
        assert result["total_seconds"] == turn["first"] + turn["rest"]
        ratio = result["times_as_fast"]["total"]
        assert ratio["low"] == ratio["median"] == ratio["high"] > 0
    runtimes = {result["model"]: result["runtime"].split()[0] for result in content["results"]}
    assert runtimes == {"dense": "torch", "run": "torch", "onnx": "onnxruntime"}
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((WREN, "--prompt", "1000", "--tokens", "32"), "wren has a context of 1024 tokens"),
        ((WREN, WREN), "wren names two models"),
        ((f"a={WREN}", f"a={WREN}"), "a names two models"),
        ((WREN, "--prompt", "0"), "--prompt 0: give whole numbers above 0"),
        ((WREN, "--plot", "plot.pdf"), "--plot plot.pdf: the name ends in .svg or .png"),
        (("x=nowhere",), "nowhere does not exist"),
    ],
)
def test_what_cannot_be_timed(
    arguments: tuple[str | Path, ...], says: str, capsys: Capture
) -> None:
    assert says in command(capsys, "latency", *arguments).message


def test_names_are_as_much_of_a_path_as_tells_them_apart(tmp_path: Path) -> None:
    from asvd_q.cli.latency import _named

    paths = [tmp_path / run / "artefacts" / "onnx" for run in ("one", "two")]
    found = _named([*map(str, paths), f"dense={WREN}"])
    assert list(found) == ["one/artefacts/onnx", "two/artefacts/onnx", "dense"]
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert list(_named([str(odd)]).values()) == [odd]


def test_models_of_two_vocabularies_are_not_timed_together(tmp_path: Path, capsys: Capture) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    small = tiny_llama(tmp_path / "small")
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(small)
    ended = command(capsys, "latency", WREN, small, "--prompt", "8", "--tokens", "2")
    assert "small has a vocabulary of 2 tokens" in ended.message
