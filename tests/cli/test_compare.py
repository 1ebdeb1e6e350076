"""`asvd-q compare`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from asvd_q.pipeline import run
from asvd_q.progress import silent
from asvd_q.recipe import load_recipe
from tests.cli.runner import command
from tests.support import tiny_recipe

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of one tiny model that differ in the bits of their codes."""
    folder = tmp_path_factory.mktemp("pair")
    sections = tiny_recipe(folder, blocks=1)
    folders = []
    for bits in (8, 2):
        recipe = folder / f"{bits}.yaml"
        given = sections | {
            "output": str(folder / f"run{bits}"),
            "decompose": {"ranks": {"*_proj": 8}, "scaling": "none"},
            "quantize": {"bits": bits, "group_size": 16},
            "evaluate": {"corpus": "python-docs", "window": 16, "windows": 2},
        }
        recipe.write_text(yaml.safe_dump(given), encoding="utf-8")
        run(load_recipe(recipe), silent)
        folders.append(folder / f"run{bits}")
    return folders[0], folders[1]


def test_two_real_runs(pair: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    plot = tmp_path / "plot.svg"
    ended = command(capsys, "compare", pair[0], f"small={pair[1]}", "--plot", plot)
    assert ended.code == 0, ended.err
    rows = {line.split("  ")[0]: line.split()[-2:] for line in ended.out.splitlines()}
    assert rows["quantize.bits"] == ["8", "2"]
    assert not any(name.startswith(("decompose", "evaluate", "output")) for name in rows)
    assert float(rows["bits per weight"][0]) > float(rows["bits per weight"][1])
    assert " *" not in ended.out
    assert plot.read_text(encoding="utf-8").startswith("<?xml")

    content = json.loads(command(capsys, "compare", *pair, "--json").out)
    assert [one["label"] for one in content["runs"]] == ["run8", "run2"]
    assert content["recipe_differences"] == {"quantize.bits": {"run8": 8, "run2": 2}}
    records = [json.loads((folder / "run.json").read_text()) for folder in pair]
    for one, record in zip(content["runs"], records, strict=True):
        (text,) = one["quality"]
        assert text["perplexity"] == record["quality"][0]["perplexity"]
        assert text["dense_perplexity"] == record["dense_quality"][0]["perplexity"]
        assert text["comparable"]
        assert one["total_bytes"] == record["total_bytes"]["after"]

    markdown = command(capsys, "compare", *pair, "--markdown").out
    assert "| quantize.bits | 8 | 2 |" in markdown


def test_bad_input_is_one_line(pair: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    absent = tmp_path / "absent"
    assert "is not a finished run" in command(capsys, "compare", pair[0], absent).message
    assert "two run folders" in command(capsys, "compare", pair[0]).message
    assert "one of them" in command(capsys, "compare", *pair, "--json", "--markdown").message
    assert ".svg or .png" in command(capsys, "compare", *pair, "--plot", "x.jpg").message
    (tmp_path / "run.json").write_text("{}")
    assert "damaged" in command(capsys, "compare", pair[0], tmp_path).message


def test_nothing_heavy_is_loaded_to_say_what_it_does() -> None:
    code = (
        "import sys; from asvd_q import cli; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
