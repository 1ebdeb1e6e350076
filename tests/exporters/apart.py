"""Opens artefacts in processes of their own: as whoever has no package of ours, or as ours does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["assert_opens_silently", "run_apart"]

_BEFORE = """
import importlib.abc, json, os, sys

OURS = ("asvd_q", "asvd_q_exporters")

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OURS:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import torch

jobs, tokens, found = json.loads(sys.argv[1]), torch.load(sys.argv[2]), {}
"""
_AFTER = """
assert not any(name.split(".")[0] in OURS for name in sys.modules)
torch.save(found, sys.argv[3])
"""
_OPEN = """
import sys
from pathlib import Path
import torch
from asvd_q.exporter_registry import (build_exporter)

runner = build_exporter(sys.argv[1], dict(pair.split("=") for pair in sys.argv[3:])).open(
    Path(sys.argv[2])
)
runner.forward(torch.tensor([[1, 2, 3]]))
"""


def run_apart(code: str, jobs: Mapping[str, Any], tokens: Tensor, scratch: Path) -> dict[str, Any]:
    """Run code where this package cannot be imported, on all jobs in one process.

    Args:
        code: puts something that torch can save into `found` for every name of `jobs`; `tokens`
            and torch are there.
        jobs: as JSON can hold them.
        scratch: a folder for what goes in and comes out.
    """
    tokens_file, out = scratch / "tokens.pt", scratch / "found.pt"
    torch.save(tokens, tokens_file)
    environment = os.environ | {
        "GPTQMODEL_CPU_WORKERS": "2",
        "HF_HOME": str(scratch / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
        "TORCHDYNAMO_DISABLE": "1",  # compiling gptqmodel's kernels would take minutes
    }
    script = _BEFORE + code + _AFTER
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(jobs), str(tokens_file), str(out)],
        env=environment,
        cwd=scratch,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(out)
    return found


def assert_opens_silently(format: str, folder: Path, *options: str) -> None:
    """Nothing comes to the terminal while an artefact is opened and run.

    Args:
        options: of the exporter, as "key=value".
    """
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, format, str(folder), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
