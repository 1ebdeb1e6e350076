"""The program that docs/onnx.md shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from asvd_q.evaluation.generation import generate
from tests.exporters.onnx.conftest import Export

_PAGE = Path(__file__).parents[3] / "docs" / "onnx.md"
_FOLDER = '"run/artefacts/onnx", [5,'


def test_the_program_with_one_buffer_makes_the_tokens_of_the_runner(mixed: Export) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", _PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (program,) = (block for block in blocks if _FOLDER in block)
    found: dict[str, Any] = {}
    exec(program.replace('"run/artefacts/onnx"', repr(str(mixed.folder))), found)
    runner = mixed.exporter.open(mixed.folder)
    expected = list(generate(runner, found["PROMPT"], max_new_tokens=found["NEW"]))
    assert found["made"] == expected
    assert len(set(expected)) > 1  # one token over and over would hide a damaged cache
