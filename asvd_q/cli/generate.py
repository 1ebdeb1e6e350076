"""`generate`: text from a model, in its runtime."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from asvd_q.cli.app import MEASURE, app
from asvd_q.cli.console import say
from asvd_q.cli.options import (
    ModelOption,
    PathArgument,
)

__all__ = ["generate"]


@app.command(rich_help_panel=MEASURE)
def generate(
    path: PathArgument,
    prompts: Annotated[
        list[str],
        typer.Option("--prompt", help="Text to continue; several are computed as one batch."),
    ],
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to add at most; the context ends a text too.")
    ] = 48,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    model: ModelOption = None,
) -> None:
    """Continue prompts with a run, a store or an artefact, in its runtime."""
    from asvd_q.evaluation.generation import generate_text, generate_texts
    from asvd_q.opening import open_anything

    opened = open_anything(path, model)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "context": opened.context,
        "temperature": temperature,
        "seed": seed,
    }
    if len(prompts) > 1:
        texts = generate_texts(opened.runner, opened.tokenizer, prompts, **settings)
        say("\n\n".join(texts))
        return
    for piece in generate_text(opened.runner, opened.tokenizer, prompts[0], **settings):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
