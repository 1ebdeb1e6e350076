"""A finished run for the commands that look at one."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.progress import silent
from tests.cli.runner import EVALUATE, write_recipe


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of wren: factors at 8 bits, one ONNX artefact."""
    from asvd_q.pipeline import run
    from asvd_q.recipe import load_recipe

    folder = tmp_path_factory.mktemp("commands")
    recipe = write_recipe(
        folder,
        quantize={"bits": 8, "group_size": 32},
        evaluate=EVALUATE,
        export=[{"format": "onnx", "accuracy_level": 0}],
    )
    run(load_recipe(recipe), silent)
    return folder / "run"
