"""Programs that load artefacts, as their model cards show them."""

from __future__ import annotations

import json
from pathlib import Path

from asvd_q.models.modeling_asvd_q import base_type
from asvd_q.usage import Snippet

__all__ = [
    "FOLDER",
    "PROMPT",
    "TOKENS",
    "continuation",
    "has_tokenizer",
    "loads_with",
    "loads_with_gptqmodel",
]

FOLDER = 'folder = "."  # that of this card, or its name on the hub'
PROMPT = "The first thing"
TOKENS = 32


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer travels with the model."""
    return (folder / "tokenizer_config.json").is_file()


def loads_with(folder: Path, *packages: str) -> tuple[Snippet, ...]:
    """A checkpoint in transformers; one with classes of its own also without running its code.

    Args:
        folder: the checkpoint.
        packages: that transformers needs for it besides torch.
    """
    needs = ("transformers", "torch", *packages)
    config = _config(folder)
    if "auto_map" not in config:
        return (Snippet("transformers", needs, _in_transformers(folder)),)
    found = str(config["model_type"])
    ours = base_type(found) != found
    file = "`modeling_asvd_q.py`, which imports torch and transformers alone"
    theirs = "the model's own code"
    stock = Snippet(
        "transformers",
        needs,
        _in_transformers(folder, trust=True),
        f"`trust_remote_code=True` runs a file of this folder: {file if ours else theirs}.",
    )
    if not ours:
        return (stock,)
    registered = Snippet(
        "transformers with asvd-q",
        (*needs, "asvd-q"),
        _in_transformers(folder, before=_registration("transformers", found)),
        "No code from the folder is run.",
    )
    return (stock, registered)


def loads_with_gptqmodel(folder: Path) -> Snippet:
    """A GPTQ-format checkpoint in GPTQModel's own loader, which wants a tokenizer there."""
    found = str(_config(folder)["model_type"])
    ours = base_type(found) != found
    lines = [
        *([*_registration("gptqmodel", found)] if ours else ()),
        "from gptqmodel import GPTQModel",
        "",
        FOLDER,
        "model = GPTQModel.load(folder)",
        f'made = model.generate("{PROMPT}", max_new_tokens={TOKENS}, do_sample=False)',
        "print(model.tokenizer.decode(made[0], skip_special_tokens=True))",
    ]
    return Snippet(
        "GPTQModel",
        ("gptqmodel", *(("asvd-q",) if ours else ())),
        _text(lines),
        "On two cores or one it wants `GPTQMODEL_CPU_WORKERS=2` in the environment.",
    )


def _in_transformers(folder: Path, *, trust: bool = False, before: tuple[str, ...] = ()) -> str:
    known = has_tokenizer(folder)
    names = "AutoModelForCausalLM, AutoTokenizer" if known else "AutoModelForCausalLM"
    trusted = ", trust_remote_code=True" if trust else ""
    return _text(
        [
            *before,
            *(() if known else ("import torch",)),
            f"from transformers import {names}",
            "",
            FOLDER,
            f"model = AutoModelForCausalLM.from_pretrained(folder{trusted})",
            *continuation(known, "folder", trusted),
        ]
    )


def continuation(known: bool, folder: str, trusted: str = "") -> tuple[str, ...]:
    """Lines that let `model` write.

    Args:
        known: whether there is a tokenizer.
        folder: where it lies, as an expression of the program.
        trusted: a further argument of whatever reads the folder's configuration.
    """
    made = f"max_new_tokens={TOKENS}, do_sample=False"
    if not known:
        return (
            "tokens = torch.tensor([[1, 2, 3]])  # no tokenizer came with the model",
            f"print(model.generate(tokens, {made}))",
        )
    return (
        f"tokenizer = AutoTokenizer.from_pretrained({folder}{trusted})",
        f'tokens = tokenizer("{PROMPT}", return_tensors="pt").input_ids.to(model.device)',
        f"made = model.generate(tokens, {made})",
        "print(tokenizer.decode(made[0], skip_special_tokens=True))",
    )


def _registration(module: str, model_type: str) -> tuple[str, ...]:
    """Lines after which a loader knows a model type of ours."""
    from asvd_q.integrations.transformers import FAMILIES

    base = base_type(model_type)
    if base in FAMILIES:
        return (f"import asvd_q.integrations.{module}",)
    return (f"from asvd_q.integrations.{module} import register", f'register("{base}")')


def _config(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
