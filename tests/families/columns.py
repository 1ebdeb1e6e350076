"""What is done with every family: recipes, and the formats that hold what they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.families.models import WINDOW
from tests.support import WREN

__all__ = ["COLUMNS", "FACTORS_ALONE", "Column", "export_section", "write_recipe"]


@dataclass(frozen=True)
class Column:
    """One recipe.

    Attributes:
        sections: of the recipe, without model, calibration and exports.
        formats: what its result is exported to.
    """

    sections: dict[str, Any]
    formats: tuple[str, ...]


_GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
_RTN = {"method": "rtn", "bits": 4, "group_size": 32}
_FLOAT_FACTORS = {"overrides": [{"match": "*", "slot": slot, "skip": True} for slot in "AB"]}
COLUMNS: dict[str, Column] = {
    "asvd": Column({"decompose": {"kept_ratio": 0.8}}, ("transformers", "onnx")),
    "asvd-gptq": Column(
        {"decompose": {"kept_ratio": 0.8}, "quantize": _GPTQ},
        ("gptq", "compressed-tensors", "onnx"),
    ),
    "asvd-nf4": Column(
        {"decompose": {"kept_ratio": 0.8}, "quantize": {"method": "nf4", "group_size": 32}},
        ("transformers", "bitsandbytes", "onnx"),
    ),
    "rtn": Column({"quantize": _RTN}, ("gptq", "compressed-tensors")),
    "nf4": Column({"quantize": {"method": "nf4", "group_size": 32}}, ("bitsandbytes",)),
    "correct": Column(
        {"quantize": _RTN | _FLOAT_FACTORS, "correct": {"rank": 32}}, ("peft", "onnx")
    ),
}
"""A format of another exporter is one more word in `formats`."""

FACTORS_ALONE = {("gpt2", "compressed-tensors")}
"""Family and format that takes none of its dense layers in codes."""


def write_recipe(folder: Path, model: Path, column: Column, **sections: Any) -> Path:
    """The column's recipe for a model folder; its run goes beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text((WREN / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    content = {
        "model": {"path": str(model)},
        "output": str(folder / "run"),
        "calibration": {"corpus": str(text), "samples": 4, "window": WINDOW, "batch_size": 2},
        **column.sections,
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def export_section(column: Column, format: str) -> dict[str, Any]:
    """How a column's recipe asks for a format: codes as floats, and exact products in ONNX."""
    given: dict[str, dict[str, Any]] = {
        "onnx": {"accuracy_level": 0},
        "transformers": {"dequantize": "quantize" in column.sections},
    }
    return {"format": format, **given.get(format, {})}
