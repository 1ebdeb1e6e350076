"""The exports that the browser benchmark opens, and what each is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asvd_q_exporters.onnx import OnnxOptions
from benchmarks._compressions import BASE, RANK_MULTIPLE, merged

__all__ = ["CASES", "Case"]

_FACTORS = {"decompose": {"kept_ratio": 0.8, "rank_multiple": RANK_MULTIPLE}}
_QUANTIZE: Mapping[str, Mapping[str, Any]] = {
    "rtn": {"method": "rtn", "bits": 4},
    "whole": {"method": "rtn", "bits": 4, "embedding": {"bits": 8}, "head": {"bits": 8}},
    "nf4": {"method": "nf4", "clip": None},
}
"""By what cases call them; `whole` has the embedding and the head in codes too."""

_WORDS = {
    "rtn": "RTN 4 bits",
    "whole": "RTN 4 bits, embedding and head in 8",
    "nf4": "NF4",
}


@dataclass(frozen=True)
class Case:
    """An export.

    Attributes:
        quantize: name of its settings in `_QUANTIZE`.
        options: of the ONNX format.
        exact: whether both runtimes compute alike, so that tokens have to be equal.
    """

    quantize: str
    exact: bool
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sections(self) -> dict[str, Any]:
        """Of the recipe."""
        return merged(BASE, _FACTORS | {"quantize": _QUANTIZE[self.quantize]})

    @property
    def title(self) -> str:
        """What is in codes, at which level, and the other options."""
        options = OnnxOptions.model_validate(dict(self.options))
        level = [] if self.quantize == "nf4" else [f"level {options.accuracy_level}"]
        others = [
            f"`{key}: {json.dumps(value) if isinstance(value, bool) else value}`"
            for key, value in self.options.items()
            if key != "accuracy_level"
        ]
        return ", ".join([_WORDS[self.quantize], *level, *others])


CASES = {
    "level 0": Case("rtn", True, {"accuracy_level": 0, "external_data": True}),
    "level 4": Case("rtn", False),
    "NF4": Case("nf4", True),
    "whole": Case("whole", True, {"accuracy_level": 0}),
    "whole outside": Case("whole", True, {"accuracy_level": 0, "external_data": True}),
    "standard": Case("rtn", True, {"accuracy_level": 0, "operators": "standard"}),
    "float16": Case("rtn", False, {"accuracy_level": 0, "dtype": "float16"}),
}
"""By what the table calls them. Two have their weights outside the graph."""
