"""A base checkpoint with its adapter behind the Runner protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.evaluation.torch_runner import TorchRunner
from asvd_q_exporters._runner import loading, quiet, runtime
from asvd_q_exporters.gptq.runner import load

if TYPE_CHECKING:
    from asvd_q.plan import FloatType

__all__ = ["open_runner"]


def open_runner(folder: Path, compute_type: FloatType) -> TorchRunner:
    """Load both for the CPU.

    Raises:
        ArtefactError: one of them cannot be loaded.
    """
    base = load(folder / "base", compute_type)
    adapter = folder / "adapter"
    with quiet():
        from peft import PeftModel

        with loading(adapter):
            model = PeftModel.from_pretrained(base, str(adapter), local_files_only=True)
    return TorchRunner(model.get_base_model(), runtime(compute_type, "peft", "gptqmodel"))
