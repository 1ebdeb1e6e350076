"""`evaluate`: how good a model is, and how fast, in its runtime."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from asvd_q.cli.app import MEASURE, app
from asvd_q.cli.console import console, say
from asvd_q.cli.options import (
    BatchesOption,
    JsonOption,
    ModelOption,
    PathArgument,
    PromptsOption,
    RoundsOption,
    ThreadsOption,
    TokensOption,
    measured_load,
)

if TYPE_CHECKING:
    from asvd_q.report.evaluation import Speed

__all__ = ["evaluate"]


@app.command(rich_help_panel=MEASURE)
def evaluate(
    path: PathArgument,
    corpora: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus",
            help="Corpus, as in recipes: python-docs, wikitext2, ptb, c4, a file, hub:…; may be "
            "repeated. python-docs and python-source if left out.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Part of the corpora; test (of c4: validation).")
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="windows, or standard: windows of the model's context (2048 at most), all of "
            "them, BOS once, as published perplexities are measured."
        ),
    ] = "windows",
    window: Annotated[
        str | None, typer.Option(metavar="N", help="Tokens per window, or context; 512.")
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=0, help="Windows per corpus, 0 for all; 64.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows per forward pass.")] = 4,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model to compare with, or none; the dense one if left out.",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Task of lm-eval, or a task file (.yaml); may be repeated."),
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Examples before a task's questions.")] = None,
    limit: Annotated[int | None, typer.Option(help="Samples per task.")] = None,
    model: ModelOption = None,
    speed: Annotated[bool, typer.Option("--speed", help="Measure speed and memory too.")] = False,
    batches: BatchesOption = "1",
    prompts: PromptsOption = "128",
    tokens: TokensOption = 32,
    rounds: RoundsOption = 5,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quality of a run, a store or an artefact in its runtime, or of a model folder.

    Perplexity, and beside the dense model KL divergence and how often both rank the same token
    first. With `--task`, accuracy; corpora are then read only where they are named.
    """
    from asvd_q.evaluation.assess import assess
    from asvd_q.evaluation.runners import model_runner
    from asvd_q.evaluation.tasks.loading import load_tasks
    from asvd_q.evaluation.tasks.running import assess_tasks
    from asvd_q.evaluation.texts import evaluation_texts, prompt_tokens
    from asvd_q.opening import open_anything
    from asvd_q.process import limited_threads
    from asvd_q.recipe.build import evaluate_section
    from asvd_q.reference import find_reference
    from asvd_q.report.evaluation import (
        quality_content,
        quality_of_texts,
        speed_content,
        speed_table,
    )
    from asvd_q.report.progress import showing_progress
    from asvd_q.report.tables import print_table
    from asvd_q.report.tasks import task_table, tasks_content
    from asvd_q.speed import models_speed, peak_memory

    section = evaluate_section(
        corpora or ([] if tasks else ["python-docs", "python-source"]),
        split=split,
        protocol=protocol,
        window=window,
        windows=windows,
        batch_size=batch_size,
        tasks=tasks or (),
        shots=shots,
        limit=limit,
    )
    loaded = load_tasks(section.tasks)
    load = measured_load(batches, prompts, tokens, rounds)
    measured: list[Speed] = []
    with limited_threads(threads), showing_progress(console(stderr=True)) as progress:
        opened = open_anything(path, model)
        dense = find_reference(path, opened, model=model, wanted=reference)
        texts = evaluation_texts(section, opened.tokenizer, opened.context)
        beside = None if dense.source is None else model_runner(dense.source)
        found = assess(opened.runner, beside, texts, batch_size=batch_size, progress=progress)
        answered = assess_tasks(
            loaded,
            opened.runner,
            beside,
            opened.tokenizer,
            context=opened.context,
            batch_size=batch_size,
            progress=progress,
        )
        if speed:
            for one in models_speed({path.name: opened}, load, progress):
                shape = (one.timing.batch, one.timing.prompt)
                ids = prompt_tokens(opened.tokenizer, *shape)
                measured.append((one, peak_memory(path, ids, tokens, model)))
    if as_json:
        content = {
            "path": str(path),
            "reference": None if dense.source is None else dense.source.name,
            "note": dense.note,
            "quality": quality_content(found),
            "tasks": tasks_content(answered),
            "speed": speed_content(measured) if speed else None,
        }
        print(json.dumps(content, indent=1))  # noqa: T201
        return
    if found:
        print_table(console(), quality_of_texts(found, str(path)))
    if loaded:
        print_table(console(), task_table(answered.results, answered.dense))
        say(f"tasks: {opened.runner.runtime}")
    if dense.note is not None:
        say(dense.note)
    if speed:
        print_table(console(), speed_table(measured))
