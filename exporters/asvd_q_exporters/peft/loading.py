"""How both folders are loaded, as the model card says it."""

from __future__ import annotations

from pathlib import Path

from asvd_q.usage import Snippet, Usage
from asvd_q_exporters._loading import continuation, has_tokenizer

__all__ = ["usage"]


def usage(folder: Path) -> Usage:
    """See `asvd_q.usage.DescribedExporter`."""
    known = has_tokenizer(folder / "base")
    names = "AutoModelForCausalLM, AutoTokenizer" if known else "AutoModelForCausalLM"
    lines = [
        *(() if known else ("import torch",)),
        "from peft import PeftModel",
        f"from transformers import {names}",
        "",
        'base = AutoModelForCausalLM.from_pretrained("base")  # both folders beside this card',
        'model = PeftModel.from_pretrained(base, "adapter")',
        *continuation(known, '"base"'),
    ]
    needs = ("transformers", "torch", "peft", "optimum", "gptqmodel")
    snippet = Snippet("PEFT", needs, "\n".join(lines) + "\n")
    return Usage((snippet,), "peft", ("lora", "gptq"), relation="adapter")
