"""Which scripts have a place on the page, how each is run, and what is said of it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.page import (
    budget,
    codes,
    decoding,
    demo,
    elsewhere,
    loaders,
    low_rank,
    speed,
    studies,
    tasks,
    timing,
)
from benchmarks.page.result import Results
from benchmarks.scaling import SAMPLED_RATIO

__all__ = ["BLOCKS", "ENTRIES", "Block", "Entry", "claim_of", "entry_named", "title_of"]

_SCRIPTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Entry:
    """One run of a script.

    Attributes:
        name: of its result.
        module: in `benchmarks`.
        arguments: {data} is the folder of texts, {work} one that the script may fill, and {NAME}
            the JSON of another entry.
        finding: one or a few sentences, made of the numbers.
        blocks: tables that pages show, by their names in `BLOCKS`.
        fast: one of `make bench`.
        setting: words behind the script's title, where it has several entries.
        needs: what has to be there beside the repository and the texts.
        keeps: the script has --append, so that an interrupted run goes on.
        judges: the script ends with `CLAIM_FAILED` where a claim does not hold, everything written.
    """

    name: str
    module: str
    finding: Callable[[Results], str]
    blocks: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    fast: bool = False
    setting: str = ""
    needs: str = ""
    keeps: bool = False
    judges: bool = False

    @property
    def needs_data(self) -> bool:
        """Whether it reads texts that are not in the repository."""
        return "{data}" in self.arguments


@dataclass(frozen=True)
class Block:
    """A table that a page may show between `<!-- begin NAME -->` and `<!-- end -->`.

    Attributes:
        entry: whose numbers it has, and whose command stands below it.
        render: Markdown, from the results.
        note: what the columns mean, above the table on the results page.
    """

    entry: str
    render: Callable[[Results], str]
    note: str = ""


_DATA = ("--data", "{data}")
_CORPORA = (*_DATA, "--calibration", "wikitext2,ptb,tinystories,pycode")
_CACHE = ("--cache", "{work}/cache")
_PERPLEXITY = (
    "Perplexity on test parts, 64 windows of 512 tokens; bits per weight of the linear layers as a "
    "store counts them, scales included."
)
_SHORTEST = (
    "In bold is the least on a corpus among models that differ in the calibration text alone."
)

ENTRIES: tuple[Entry, ...] = (
    Entry("demo", "demo", demo.demo_finding, ("demo",), fast=True),
    Entry(
        "kernel_times",
        "kernel_times",
        speed.kernel_finding,
        ("kernels",),
        fast=True,
        judges=True,
    ),
    *(
        Entry(
            name,
            "cross_domain",
            partial(studies.cross_domain_finding, name=name),
            (name.replace("_", "-"),),
            arguments,
            fast=fast,
            setting=setting,
        )
        for name, arguments, fast, setting in (
            (
                "cross_domain",
                (*_DATA, "--quantize", "none,gptq3", "--windows", "16", *_CACHE),
                False,
                "four corpora",
            ),
            (
                "cross_domain-fast",
                ("--ratios", "0.8", "--quantize", "none", "--windows", "16", *_CACHE),
                True,
                "the built-in corpora",
            ),
        )
    ),
    *(
        Entry(
            name,
            "scaling",
            partial(studies.scaling_finding, name=name),
            (name, f"{name}-samples"),
            arguments,
            fast=fast,
            setting=setting,
        )
        for name, arguments, fast, setting in (
            (
                "scaling",
                (*_DATA, "--corpora", "wikitext2,pycode", "--windows", "16", *_CACHE),
                False,
                "calibrated on WikiText-2",
            ),
            (
                "scaling-fast",
                (
                    *("--ratios", "0.8", "--alphas", "0.5,1", "--counts", "2,8,32"),
                    *("--seeds", "1,2", "--windows", "16", *_CACHE),
                ),
                True,
                "the built-in corpora",
            ),
        )
    ),
    Entry(
        "tasks",
        "tasks",
        partial(tasks.tasks_finding, name="tasks"),
        ("tasks",),
        ("--limit", "100"),
        fast=True,
    ),
    Entry(
        "latency",
        "latency",
        timing.latency_finding,
        ("latency",),
        ("--rounds", "3"),
        fast=True,
        judges=True,
    ),
    Entry("gptq_speed", "gptq_speed", speed.gptq_finding, ("gptq-speed",), fast=True),
    Entry(
        "budget",
        "budget",
        budget.budget_finding,
        ("budget",),
        (*_CORPORA, "--variants", "all", "--beside", "{frontier}", *_CACHE),
        keeps=True,
    ),
    Entry(
        "budget-parts",
        "budget",
        budget.parts_finding,
        ("budget-parts",),
        (*_CORPORA, "--budgets", "2.56,3,3.59", *_CACHE),
        setting="part by part",
        keeps=True,
    ),
    Entry(
        "frontier",
        "frontier",
        codes.frontier_finding,
        ("frontier",),
        (
            *_CORPORA,
            *("--kept", "0.8,0.6", "--factors", "GPTQ 4,GPTQ 3,GPTQ 2"),
            *("--peers", "bitsandbytes,gptqmodel"),
            *_CACHE,
        ),
        keeps=True,
    ),
    Entry(
        "factor_ablation",
        "factor_ablation",
        codes.factor_finding,
        ("factor-choices",),
        (
            *_DATA,
            *("--bits", "4,3", "--kept", "0.8"),
            *("--variants", "default,both,u,v,not-refitted,not-sequential,minmax"),
            *_CACHE,
        ),
        keeps=True,
    ),
    Entry(
        "allocation",
        "allocation",
        low_rank.allocation_finding,
        ("kept",),
        (
            *_DATA,
            *("--parts", "default", "--calibration", "generated"),
            *("--targets", "0.947,0.9,0.8,0.697,0.595,0.498"),
            *_CACHE,
        ),
        setting="the recipes' default",
        keeps=True,
    ),
    Entry("budget_cost", "budget_cost", speed.budget_cost_finding, (), _DATA),
    Entry("budget_onnx", "budget_onnx", speed.budget_onnx_finding, ("budget-onnx",)),
    Entry(
        "decode",
        "decode",
        decoding.decode_finding,
        ("decode", "decode-forms", "decode-widths", "decode-sweep"),
        ("--artefacts", "{work}/artefacts", "--seconds", "45"),
        needs="the extra `genai`",
        judges=True,
    ),
    Entry(
        "parity",
        "parity",
        loaders.parity_finding,
        ("parity", "families"),
        (*_DATA, "--families", "all"),
    ),
    Entry(
        "stacking",
        "stacking",
        loaders.stacking_finding,
        ("stacking",),
        (*_DATA, *_CACHE),
        needs="llm-compressor in an environment of its own, for one row",
    ),
    Entry(
        "optimum",
        "optimum_runtime",
        elsewhere.optimum_finding,
        ("optimum",),
        ("--make-environment", "{work}/environment"),
        needs="a package registry, for an environment with optimum",
        judges=True,
    ),
    Entry(
        "openvino",
        "openvino_runtime",
        elsewhere.openvino_finding,
        ("openvino",),
        ("--make-environment", "{work}/environment"),
        needs="a package registry, for an environment with OpenVINO",
        judges=True,
    ),
    Entry(
        "browser",
        "browser",
        loaders.browser_finding,
        ("browser",),
        needs="node, npm and Chromium",
        judges=True,
    ),
)
"""In the order of the page; those whose numbers others read come before them when they are run."""

BLOCKS: Mapping[str, Block] = {
    "demo": Block("demo", demo.demo_table),
    "budget": Block("budget", budget.budget_table, _PERPLEXITY),
    "budget-parts": Block(
        "budget-parts",
        budget.parts_table,
        "Rise of the perplexity over the dense model's, geometric mean over the corpora.",
    ),
    "frontier": Block("frontier", codes.front_table, f"{_PERPLEXITY} Bold is on the Pareto front."),
    "factor-choices": Block(
        "factor_ablation",
        codes.factor_choices_table,
        "Rise of the perplexity over the default's, geometric mean over the corpora.",
    ),
    "kept": Block("allocation", low_rank.kept_table),
    "tasks": Block("tasks", partial(tasks.tasks_table, name="tasks")),
    **{
        name.replace("_", "-"): Block(
            name,
            partial(studies.cross_domain_table, name=name),
            f"Rise of the perplexity over the dense model's. {_SHORTEST}",
        )
        for name in ("cross_domain", "cross_domain-fast")
    },
    **{
        name: Block(
            name,
            partial(studies.alphas_table, name=name),
            "Rise of the perplexity over the dense model's, geometric mean over the corpora.",
        )
        for name in ("scaling", "scaling-fast")
    },
    **{
        f"{name}-samples": Block(
            name,
            partial(studies.samples_table, name=name),
            f"Whitening at a kept ratio of {SAMPLED_RATIO:g}, other windows for every seed.",
        )
        for name in ("scaling", "scaling-fast")
    },
    "latency": Block(
        "latency",
        timing.latency_table,
        "Times as fast as the dense model in the same runtime; decoding of all sequences together.",
    ),
    "kernels": Block("kernel_times", speed.kernel_table),
    "gptq-speed": Block("gptq_speed", speed.gptq_table),
    "budget-onnx": Block("budget_onnx", speed.budget_onnx_table),
    "decode": Block(
        "decode", decoding.decode_table, "More than 1 is faster, and less memory, than GenAI's."
    ),
    "decode-forms": Block(
        "decode",
        decoding.forms_table,
        "Decoding over dense codes in 4 bits, beside what the bytes allow that a token reads.",
    ),
    "decode-widths": Block(
        "decode", decoding.widths_table, "Decoding, factors over dense codes, both in 4 bits."
    ),
    "decode-sweep": Block(
        "decode",
        decoding.sweep_table,
        "Time to the first token, and tokens per second of all sequences together: GenAI's graph, "
        "and how many times as fast the others are.",
    ),
    "parity": Block("parity", loaders.parity_table),
    "families": Block("parity", loaders.families_table),
    "stacking": Block("stacking", loaders.stacking_table),
    "optimum": Block(
        "optimum",
        elsewhere.optimum_table,
        "With IO binding and without, together; of random models both forms together.",
    ),
    "openvino": Block("openvino", elsewhere.openvino_table),
    "browser": Block("browser", loaders.browser_table),
}
"""Tables by name."""


def entry_named(name: str) -> Entry:
    """
    Raises:
        KeyError: there is none.
    """
    return {entry.name: entry for entry in ENTRIES}[name]


def title_of(entry: Entry) -> str:
    """First line of the script's docstring, without its full stop."""
    return _docstring(entry).partition("\n")[0].removesuffix(".")


def claim_of(entry: Entry) -> str:
    """The paragraph of the docstring that says what is claimed; empty where none does."""
    paragraphs = _docstring(entry).split("\n\n")
    found = (part for part in paragraphs if part.startswith(("Claim: ", "Claims: ")))
    return " ".join(next(found, "").split())


def _docstring(entry: Entry) -> str:
    """Read, not imported: some scripts import a package that is not installed."""
    source = (_SCRIPTS / f"{entry.module}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""
