"""`evaluate`: how good a model is, in its runtime."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from asvd_q.cli.app import app
from asvd_q.cli.console import console, say
from asvd_q.cli.options import (
    JsonOption,
    ModelOption,
    PathArgument,
)

if TYPE_CHECKING:
    from asvd_q.evaluation.quality import Quality

__all__ = ["evaluate"]


@app.command()
def evaluate(
    path: PathArgument,
    corpora: Annotated[
        list[str] | None,
        typer.Option("--corpus", help="Corpus; may be repeated. python-docs and python-source."),
    ] = None,
    split: Annotated[str, typer.Option(help="Part of the corpora.")] = "test",
    window: Annotated[int, typer.Option(help="Tokens per window.")] = 512,
    windows: Annotated[int, typer.Option(help="Windows per corpus, 0 for all.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Windows per forward pass.")] = 4,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Perplexity of a run, a store or an artefact in its runtime, or of a model folder."""
    from asvd_q.evaluation.quality import evaluate_quality
    from asvd_q.evaluation.texts import evaluation_texts
    from asvd_q.opening import open_anything
    from asvd_q.recipe.build import evaluate_section
    from asvd_q.report.progress import showing_progress

    section = evaluate_section(
        corpora or ["python-docs", "python-source"],
        split=split,
        window=window,
        windows=windows or None,
        batch_size=batch_size,
    )
    opened = open_anything(path, model)
    found: list[Quality] = []
    with showing_progress(console(stderr=True)) as progress:
        for text in evaluation_texts(section, opened.tokenizer):

            def advance(done: int, total: int, stage: str = text.corpus) -> None:
                progress(stage, done, total)

            found.append(
                evaluate_quality(opened.runner, text, batch_size=batch_size, progress=advance)
            )
    if as_json:
        print(json.dumps([quality.model_dump() for quality in found], indent=1))  # noqa: T201
        return
    for quality in found:
        say(
            f"{quality.corpus} ({quality.split}): perplexity {quality.perplexity:.4f} on "
            f"{quality.tokens} tokens, {quality.windows} windows of {quality.window}, "
            f"{quality.runtime}"
        )
