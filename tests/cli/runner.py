"""Runs the command line inside the test's own process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from asvd_q import cli
from tests.support import WREN

__all__ = ["EVALUATE", "Outcome", "command", "write_recipe"]

EVALUATE = {"corpus": "python-docs", "window": 64, "windows": 2}
"""An `evaluate` section that takes a moment."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line of an error; anything else on standard error fails the test."""
        assert self.code == 2, (self.out, self.err)
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert lines[-1].startswith("error: "), self.err
        assert "Traceback" not in self.err
        return lines[-1]


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Outcome:
    """Run `asvd-q ARGUMENTS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["asvd-q", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    captured = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), captured.out, captured.err)


def write_recipe(folder: Path, **sections: object) -> Path:
    """A small recipe for wren, with sections replaced or added; output goes into `folder`."""
    fields: dict[str, object] = {
        "model": {"path": str(WREN)},
        "output": str(folder / "run"),
        "calibration": {"corpus": "python-docs", "samples": 2, "window": 64},
        "decompose": {"kept_ratio": 0.7},
    }
    fields |= sections
    path = folder / "recipe.yaml"
    kept = {key: value for key, value in fields.items() if value is not None}
    path.write_text(yaml.safe_dump(kept), encoding="utf-8")
    return path
