"""The command line: parse, call, print. Heavy packages are imported inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from asvd_q.cli_options import (
    BitsOption,
    JsonOption,
    ModelOption,
    PathArgument,
    RecipeArgument,
    SetOption,
    SizeOption,
    numbers,
    with_budget,
)
from asvd_q.errors import AsvdQError

if TYPE_CHECKING:
    from asvd_q.evaluation.quality import Quality
    from asvd_q.recipe import Recipe

__all__ = ["app", "main"]

app = typer.Typer(
    name="asvd-q",
    help="Low-rank decomposition and quantization of language models, exported and proven.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_INTERRUPTED = 130

_NO_MEMORY = (
    "there is not enough memory: keep hidden states on disk (calibration.hidden_states: disk) "
    "or lower calibration.batch_size"
)


def main() -> NoReturn:
    """Run the command line; what a person can act on ends with one line and exit code 2."""
    from asvd_q.process import settle_process

    settle_process()
    try:
        app()
    except AsvdQError as error:
        _fail(str(error), 2)
    except MemoryError:
        _fail(_NO_MEMORY, 2)
    except RuntimeError as error:
        # torch has an error of its own for a GPU's memory, and none for the machine's.
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        _fail(_NO_MEMORY, 2)
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # what typer makes of Ctrl-C
            _fail("interrupted; `asvd-q run` goes on from the last finished block", _INTERRUPTED)
        raise
    sys.exit(0)


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    size: SizeOption = None,
    bits_per_weight: BitsOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what an earlier run left.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Carry out a recipe; run again, it goes on where it stopped."""
    loaded = _load(recipe, with_budget(overrides, size, bits_per_weight))
    from asvd_q import pipeline
    from asvd_q.report import tables
    from asvd_q.report.progress import showing_progress
    from asvd_q.report.tables import artefact_table, print_table, quality_table

    console = _console()
    with showing_progress(_console(stderr=True)) as progress:
        record = pipeline.run(loaded, progress, fresh=fresh)
    if as_json:
        print(record.model_dump_json(indent=1))  # noqa: T201 - the command's output
        return
    for warning in record.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    if record.quality:
        print_table(console, quality_table(record))
    if record.artefacts:
        print_table(console, artefact_table(record))
    for line in (
        f"layers: kept {record.parameters.ratio:.4f} of their parameters, "
        f"{tables.size(record.layer_bytes.before)} to {tables.size(record.layer_bytes.after)}",
        f"whole model: {tables.size(record.total_bytes.before)} to "
        f"{tables.size(record.total_bytes.after)} "
        f"in the source's float type, codes at their own width",
        f"run folder: {loaded.output}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def validate(recipe: RecipeArgument, overrides: SetOption = None) -> None:
    """Check a recipe against the schema, and its formats and their options against exporters."""
    loaded = _load(recipe, overrides)
    from asvd_q.budget.format import format_count
    from asvd_q.exporting import make_exports

    exports = make_exports(loaded, str(recipe))
    if loaded.budget is not None:
        format_count(loaded, "float32", exports)  # what a format holds depends on no float type
    _say(f"{recipe}: valid")


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    size: SizeOption = None,
    bits_per_weight: BitsOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a recipe would do: layers, ranks, bytes, memory, time, exporters. Changes nothing."""
    loaded = _load(recipe, with_budget(overrides, size, bits_per_weight))
    from asvd_q.pipeline import prepare_known
    from asvd_q.report.planned import plan_content, plan_remarks, plan_tables, planned
    from asvd_q.report.tables import print_table

    found = planned(*prepare_known(loaded))
    if as_json:
        print(json.dumps(plan_content(found), indent=1))  # noqa: T201
        return
    for table in plan_tables(found):
        print_table(_console(), table)
    for remark in plan_remarks(found):
        _say(remark)


@app.command()
def search(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    size: SizeOption = None,
    bits_per_weight: BitsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the rank, or the form, of every layer for the recipe's target; nothing is compressed.

    What is found is kept in the run folder, and `asvd-q run` takes it from there.
    """
    loaded = _load(recipe, with_budget(overrides, size, bits_per_weight))
    from asvd_q import pipeline
    from asvd_q.budget.solving import BudgetResult
    from asvd_q.report.budget import budget_summary, budget_table
    from asvd_q.report.progress import showing_progress
    from asvd_q.report.search import SEARCH, search_findings, search_summary, search_table
    from asvd_q.report.tables import print_table

    with showing_progress(_console(stderr=True)) as progress:
        result = pipeline.search(loaded, progress)
    folder = Path(loaded.output) / SEARCH
    if isinstance(result, BudgetResult):
        if as_json:
            print((folder / "budget.json").read_text(), end="")  # noqa: T201
            return
        print_table(_console(), budget_table(result))
        for line in budget_summary(result):
            _say(line)
        _say(f"the plan for a recipe, the table and the front: {folder}")
        return
    if as_json:
        print((folder / "search.json").read_text(), end="")  # noqa: T201
        return
    print_table(_console(), search_table(result))
    for line in (*search_summary(result), *search_findings(result)):
        _say(line)
    _say(f"ranks for a recipe, the table and plots: {folder}")


@app.command()
def frontier(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    budgets: Annotated[
        str,
        typer.Option("--bits-per-weight", help="Budgets with commas; a row of them if left out."),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """The best predicted model at every budget, beside plain RTN, NF4 and GPTQ.

    Nothing is compressed; `asvd-q run RECIPE --bits-per-weight N` makes any of them.
    """
    loaded = _load(recipe, overrides)
    from asvd_q import pipeline
    from asvd_q.report.budget import front_content, front_table
    from asvd_q.report.progress import showing_progress
    from asvd_q.report.search import SEARCH
    from asvd_q.report.tables import print_table

    with showing_progress(_console(stderr=True)) as progress:
        choices, uniform = pipeline.frontier(loaded, progress, numbers(budgets))
    if as_json:
        print(json.dumps(front_content(choices, uniform), indent=1))  # noqa: T201
        return
    print_table(_console(), front_table(choices, uniform))
    _say(f"numbers and plot: {Path(loaded.output) / SEARCH}")


@app.command(name="export")
def export_command(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    to: Annotated[str, typer.Option("--to", help="Format: onnx, gptq, transformers, …")],
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="Option of the format."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Folder of the artefact; the format's name.")
    ] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a finished run in another format, without repeating its work."""
    from asvd_q.pipeline import export_run
    from asvd_q.recipe.build import export_section
    from asvd_q.report.tables import size

    artefact = export_run(run_folder, export_section(to, name=name, options=options or ()), model)
    if as_json:
        print(artefact.model_dump_json(indent=1))  # noqa: T201
        return
    proof = artefact.proof
    _say(
        f"{run_folder / artefact.folder}: {size(artefact.bytes)}, predicted "
        f"{size(artefact.predicted.folder)}, {proof.status}"
    )
    if proof.relative_error is not None:
        _say(f"{proof.runtime}: relative logit error {proof.relative_error:.2e}")
    elif proof.detail:
        _say(proof.detail)


@app.command()
def inspect(path: PathArgument, as_json: JsonOption = False) -> None:
    """The per-layer table of a run, a store or an artefact."""
    from asvd_q.opening import read_any_metadata
    from asvd_q.report.tables import layer_table, print_table

    metadata = read_any_metadata(path)
    if as_json:
        print(metadata.model_dump_json(indent=1))  # noqa: T201
        return
    title = f"{metadata.source.name} as {metadata.format}, made by asvd-q {metadata.asvd_q}"
    print_table(_console(), layer_table(metadata.layers, title))


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
    with showing_progress(_console(stderr=True)) as progress:
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
        _say(
            f"{quality.corpus} ({quality.split}): perplexity {quality.perplexity:.4f} on "
            f"{quality.tokens} tokens, {quality.windows} windows of {quality.window}, "
            f"{quality.runtime}"
        )


@app.command()
def generate(
    path: PathArgument,
    prompts: Annotated[
        list[str],
        typer.Option("--prompt", help="Text to continue; several are computed as one batch."),
    ],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.")] = 48,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    model: ModelOption = None,
) -> None:
    """Continue prompts with a run, a store or an artefact, in its runtime."""
    from asvd_q.evaluation.generation import generate_text, generate_texts
    from asvd_q.opening import open_anything

    opened = open_anything(path, model)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    if len(prompts) > 1:
        texts = generate_texts(opened.runner, opened.tokenizer, prompts, **settings)
        _say("\n\n".join(texts))
        return
    for piece in generate_text(opened.runner, opened.tokenizer, prompts[0], **settings):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def schema() -> None:
    """The JSON schema of recipes, for editors."""
    from asvd_q.recipe import json_schema

    print(json.dumps(json_schema(), indent=1))  # noqa: T201


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from asvd_q import __version__

        _say(f"asvd-q {__version__}")
        raise typer.Exit


def _load(path: Path, overrides: list[str] | None) -> Recipe:
    from asvd_q.recipe import load_recipe

    return load_recipe(path, overrides or ())


def _console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr)


def _say(text: str) -> None:
    typer.echo(text)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)
