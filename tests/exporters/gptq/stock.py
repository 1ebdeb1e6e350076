"""Runs checkpoints as users do who have no package of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from tests.exporters.apart import run_apart

__all__ = ["Found", "Job", "run_stock"]

_SCRIPT = """
from transformers import AutoModelForCausalLM

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
    listed = {name: (str(job.folder), *job[1:]) for name, job in jobs.items()}
    found = run_apart(_SCRIPT, listed, tokens, scratch)
    return {name: Found(*one) for name, one in found.items()}
