"""Runs checkpoints as users do who have no package of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Found", "Job", "run_stock"]

_SCRIPT = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("asvd_q", "asvd_q_exporters"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForCausalLM

jobs, tokens, out = json.loads(sys.argv[1]), torch.load(sys.argv[2]), sys.argv[3]
found = {}
for name, (folder, loader, trust, dtype) in jobs.items():
    try:
        if loader == "gptqmodel":
            from gptqmodel import GPTQModel
            model = GPTQModel.load(folder, device="cpu", backend="torch")
        else:
            model = AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=trust, dtype=dtype
            )
        with torch.inference_mode():
            logits = model(input_ids=tokens).logits
    except Exception as error:
        found[name] = (None, f"{type(error).__name__}: {error}", [])
        continue
    kinds = sorted({type(m).__name__ for m in model.modules() if hasattr(m, "qweight")})
    found[name] = (logits.float(), type(model).__name__, kinds)
assert not any(name.split(".")[0] in ("asvd_q", "asvd_q_exporters") for name in sys.modules)
torch.save(found, out)
"""


class Job(NamedTuple):
    """A checkpoint, and how it is loaded.

    Attributes:
        loader: transformers with optimum and gptqmodel, or GPTQModel alone.
        trust: whether transformers may run the checkpoint's own code.
        dtype: that transformers computes in.
    """

    folder: Path
    loader: Literal["transformers", "gptqmodel"] = "transformers"
    trust: bool = True
    dtype: str = "float32"


class Found(NamedTuple):
    """What came of a job.

    Attributes:
        logits: float32; None where loading failed.
        kind: class of the model, or the error.
        kernels: classes of its layers with codes.
    """

    logits: Tensor | None
    kind: str
    kernels: list[str]


def run_stock(jobs: Mapping[str, Job], tokens: Tensor, scratch: Path) -> dict[str, Found]:
    """All jobs in one process in which this package cannot be imported."""
    torch.save(tokens, scratch / "tokens.pt")
    environment = os.environ | {
        "GPTQMODEL_CPU_WORKERS": "2",
        "HF_HOME": str(scratch / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
        "TORCHDYNAMO_DISABLE": "1",  # compiling gptqmodel's kernels would take minutes
    }
    listed = {name: (str(job.folder), *job[1:]) for name, job in jobs.items()}
    out = scratch / "logits.pt"
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(listed), str(scratch / "tokens.pt"), str(out)],
        env=environment,
        cwd=scratch,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Found(*found) for name, found in torch.load(out).items()}
