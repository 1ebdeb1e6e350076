"""What the commands have in common: their arguments, and options that become overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asvd_q.errors import RecipeError

if TYPE_CHECKING:
    from asvd_q.evaluation.latency import Load
    from asvd_q.recipe import Recipe

__all__ = [
    "BatchesOption",
    "BitsOption",
    "JsonOption",
    "ModelOption",
    "PathArgument",
    "PromptsOption",
    "RecipeArgument",
    "RoundsOption",
    "SetOption",
    "SizeOption",
    "ThreadsOption",
    "TokensOption",
    "load",
    "measured_load",
    "numbers",
    "with_budget",
]

RecipeArgument = Annotated[Path, typer.Argument(help="Recipe file (YAML).", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: decompose.alpha=0.4."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", metavar="SIZE", help='Budget: bytes of the whole model, "3.2 GiB".'),
]
BitsOption = Annotated[
    float | None,
    typer.Option("--bits-per-weight", help="Budget: bits per weight of the linear layers."),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Folder of the source model, if it has moved since the run."),
]
PathArgument = Annotated[
    Path, typer.Argument(help="Run folder, store or exported artefact.", show_default=False)
]

BatchesOption = Annotated[
    str, typer.Option("--batch", metavar="N,N", help="Sequences at once, to measure speed.")
]
PromptsOption = Annotated[
    str, typer.Option("--prompt", metavar="N,N", help="Tokens of each prompt, to measure speed.")
]
TokensOption = Annotated[
    int, typer.Option("--tokens", min=2, help="Tokens to generate, to measure speed.")
]
RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Of which medians are taken.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Of torch and ONNX Runtime.")
]


def with_budget(
    overrides: list[str] | None, size: str | None, bits_per_weight: float | None
) -> list[str]:
    """`--size` and `--bits-per-weight` take the place of whatever target a budget has."""
    from asvd_q.recipe.budget import BUDGET_TARGETS

    found = list(overrides or ())
    given = {"size": size, "bits_per_weight": bits_per_weight}
    chosen = {key: value for key, value in given.items() if value is not None}
    if len(chosen) > 1:
        raise RecipeError("--size and --bits-per-weight are two targets: give one of them")
    for key, value in chosen.items():
        found += [f"budget.{target}=null" for target in BUDGET_TARGETS if target != key]
        found.append(f"budget.{key}={json.dumps(value)}")
    return found


def numbers(text: str) -> list[float]:
    """Bits per weight with commas between them."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = [-1.0]
    if any(not 0 < number <= 32 for number in found):
        raise RecipeError(
            f"--bits-per-weight {text}: give numbers above 0 and up to 32, with commas between"
        )
    return found


def measured_load(batches: str, prompts: str, tokens: int, rounds: int) -> Load:
    """What is to be timed, of `--batch`, `--prompt`, `--tokens` and `--rounds`."""
    from asvd_q.evaluation.latency import Load

    return Load(_counts("--batch", batches), _counts("--prompt", prompts), tokens, rounds)


def _counts(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise RecipeError(f"{option} {text}: give whole numbers above 0, with commas between")
    return tuple(map(int, parts))


def load(path: Path, overrides: list[str] | None) -> Recipe:
    """The recipe that a command works on."""
    from asvd_q.recipe import load_recipe

    return load_recipe(path, overrides or ())
