"""Whether the page in `examples/browser` generates what ONNX Runtime does, in a headless browser.

Claim: in onnxruntime-web an artefact gives the greedy tokens that it gives in ONNX Runtime on the
CPU.

    python -m benchmarks.browser [--model DIR] [--cases NAME,…] [--prompt TEXT]… [--tokens 48]
                                 [--threads 1] [--screenshots DIR] [--json FILE]

The model is compressed to low-rank factors with RTN codes, or with NF4, and exported, once with
embedding and output head in codes too, and once with standard operators alone; npm installs the
packages of the example into a temporary folder. The claim is judged where both runtimes compute in
float32 (level 0, with standard operators too, and NF4), and the script ends with status 3 where it
does not hold. Elsewhere the tokens before the first that differs are only reported: at level 4 the
CPU's kernels round activations to int8 and those of WebAssembly do not, and float16 is rounded in
other places. The prompt's tokens have to be equal in every case.

A text that repeats itself hides differences, so every case continues several prompts, and the
table has the number of distinct tokens. Unless prompts are given, the first of them is of as many
tokens as the model's context leaves room for; its speed is told apart. Prompts are the outer loop:
what else the machine does falls on all cases. Speeds are medians, with the slowest and the fastest.

Needs node, npm and Chromium, and ends with status 2 where one is missing, or the
page's packages cannot be had.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any
from urllib.parse import urlencode

import torch
from rich.console import Console

from asvd_q.evaluation.generation import generate
from asvd_q.exporting import ARTEFACTS, export_store, make_exporter
from asvd_q.models import SourceModel
from asvd_q.models.context import context_length
from asvd_q.process import settle_process
from asvd_q.recipe import CorpusSection
from asvd_q.report.run import versions
from asvd_q.report.tables import Table, print_table
from asvd_q.statistics.corpora import load_corpus
from asvd_q.statistics.windows import calibration_windows
from asvd_q.store import Store
from asvd_q_exporters.onnx.runner import OnnxRunner
from benchmarks._browser_cases import CASES
from benchmarks._chromium import BrowserError, Page, find_browser, open_page
from benchmarks._claims import end_claim_failed
from benchmarks.common import Bench, Options, known_names, write_json

__all__ = ["CASES", "Row", "equal_before", "main"]

_ROOT = Path(__file__).resolve().parent.parent
_EXAMPLE = _ROOT / "examples" / "browser"
_WREN = _ROOT / "tests" / "data" / "wren"
_PROMPTS = (
    "The string method",
    "Return a list of the files in",
    "An exception is raised when",
    "import os\n\ndef",
)
_WINDOWS, _WINDOW, _SEED = 16, 256, 233
_SHORT = 64
"""Tokens of a prompt, up to which its speed is told with the others'."""

_PROOF = 2, 96
_SPARE = 16
"""Tokens: a text that is decoded and encoded again may have some more."""

_CONTEXT = 1024
"""Of a model that sets no bound."""

_CHARACTERS = 16
"""More than a token of the text has."""

_SECONDS = 120.0
_PHONE = {"width": 390, "height": 720}
_STATE = "document.getElementById('output')?.dataset.state"


@dataclass(frozen=True)
class Row:
    """One artefact and one prompt in the browser.

    Attributes:
        title: the case in words.
        expected, tokens: greedy, of ONNX Runtime on the CPU and of the page.
        prompt_tokens: of the prompt.
        long: whether there are so many that its speed is told apart.
        before: tokens before the first that differs.
        tokens_per_second: after the first; None where there is no second.
        native_tokens_per_second: of ONNX Runtime on the CPU, with the threads that it takes.
    """

    case: str
    title: str
    exact: bool
    prompt: str
    prompt_tokens: int
    long: bool
    prompt_equal: bool
    expected: list[int]
    tokens: list[int]
    before: int
    text: str
    runtime: str
    threads: int
    load_seconds: float
    prefill_seconds: float
    tokens_per_second: float | None
    native_tokens_per_second: float | None

    @property
    def holds(self) -> bool:
        return self.prompt_equal and (not self.exact or self.tokens == self.expected)


def main() -> None:
    settle_process()
    options = _parse()
    browser = find_browser()
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if browser is None:
        missing.append("chromium")
    if browser is None or missing:
        print(f"not run: no {', no '.join(missing)}", file=sys.stderr)
        sys.exit(2)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        example = _install(folder / "example")
        exports = dict(_export(options, folder / "run"))
        with open_page(browser, folder / "profile") as page:
            for prompt in options.prompt or (_long_prompt(options), *_PROMPTS):
                for name, artefact in exports.items():
                    rows.append(_row(name, artefact, prompt, example, page, options))
    if options.json is not None:
        content = {"versions": versions(), "tokens": options.tokens}
        write_json(options.json, content | {"rows": [asdict(row) for row in rows]})
    _show(rows)
    wrong = [f"{row.case} after {shorten(row.prompt, 40)!r}" for row in rows if not row.holds]
    if wrong:
        end_claim_failed(f"the browser gives other tokens: {', '.join(wrong)}")


def equal_before(expected: list[int], tokens: list[int]) -> int:
    """How many tokens come before the first that differs, or before the shorter list ends."""
    pairs = list(zip(expected, tokens, strict=False))
    return next((index for index, (one, two) in enumerate(pairs) if one != two), len(pairs))


def _parse() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=_WREN)
    parser.add_argument("--cases", type=lambda text: known_names(text, CASES), default=tuple(CASES))
    parser.add_argument("--prompt", action="append", help="may be repeated")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1, help="in the browser")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the last prompt")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    return parser.parse_args()


def _install(folder: Path) -> Path:
    """A copy of the example with its packages."""
    shutil.copytree(_EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    # The packages' install scripts are for parts that the page does not use.
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    if subprocess.run(command, cwd=folder).returncode != 0:
        print("not run: npm could not install the page's packages", file=sys.stderr)
        sys.exit(2)
    return folder


def _export(options: Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """The artefact of every case, each store compressed once."""
    chosen = Options(options.model, folder, (), (), _WINDOW, None)
    bench = Bench(chosen)
    corpus = load_corpus(CorpusSection(source="python-docs"))
    tokens = calibration_windows(
        [(corpus, 1.0)],
        bench.source.tokenizer,
        samples=_WINDOWS,
        window=_WINDOW,
        seed=_SEED,
        bos=False,
    )
    stores: dict[str, Store] = {}
    rows, length = _PROOF
    for name in options.cases:
        case = CASES[name]
        if case.quantize not in stores:
            stores[case.quantize] = bench.compress(case.sections, folder / case.quantize, tokens)
        label = name.replace(", ", "-").replace(" ", "-")
        export_store(
            stores[case.quantize],
            make_exporter("onnx", case.options, where="options", file="browser"),
            name=label,
            run_folder=folder,
            tokens=tokens[:rows, :length],
            options=case.options,
        )
        yield name, folder / ARTEFACTS / label


def _long_prompt(options: Namespace) -> str:
    """Text that leaves little more of the model's context than what is generated."""
    source = SourceModel.open(str(options.model))
    context = context_length(source.config.to_dict()) or _CONTEXT
    corpus = load_corpus(CorpusSection(source="python-docs", split="test"))
    ids = source.tokenizer(corpus.text[: _CHARACTERS * context])["input_ids"]
    text: str = source.tokenizer.decode(ids[: context - options.tokens - _SPARE])
    return text


def _row(
    name: str, artefact: Path, prompt: str, example: Path, page: Page, options: Namespace
) -> Row:
    ids, expected, native = _native(artefact, prompt, options)
    query = {"prompt": prompt, "tokens": options.tokens, "threads": options.threads}
    with _served(example, artefact) as address:
        page.look(**_PHONE, scheme="light")
        page.go(f"{address}?{urlencode(query)}")
        found = _result(page)
        if options.screenshots is not None:
            options.screenshots.mkdir(parents=True, exist_ok=True)
            for scheme in ("light", "dark"):
                page.look(**_PHONE, scheme=scheme)
                page.screenshot(options.screenshots / f"{artefact.name}-{scheme}.png")
    return Row(
        case=name,
        title=CASES[name].title,
        exact=CASES[name].exact,
        prompt=prompt,
        prompt_tokens=len(ids),
        long=len(ids) > _SHORT,
        prompt_equal=found["promptTokens"] == ids,
        expected=expected,
        tokens=found["tokens"],
        before=equal_before(expected, found["tokens"]),
        text=found["text"],
        runtime=found["runtime"],
        threads=options.threads,
        load_seconds=found["loadSeconds"],
        prefill_seconds=found["prefillSeconds"],
        tokens_per_second=found["tokensPerSecond"],
        native_tokens_per_second=native,
    )


def _native(
    artefact: Path, prompt: str, options: Namespace
) -> tuple[list[int], list[int], float | None]:
    """The prompt's tokens, those that ONNX Runtime adds on the CPU, and how many per second."""
    tokenizer = SourceModel.open(str(options.model)).tokenizer
    config = json.loads((artefact / "config.json").read_text(encoding="utf-8"))
    end = config.get("eos_token_id")
    stop = frozenset(end if isinstance(end, list) else [] if end is None else [end])
    ids: list[int] = tokenizer(prompt)["input_ids"]
    tokens: list[int] = []
    times: list[float] = []
    with torch.inference_mode():
        runner = OnnxRunner(artefact)
        for token in generate(runner, ids, max_new_tokens=options.tokens, stop=stop):
            tokens.append(token)
            times.append(time.perf_counter())
    return ids, tokens, (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None


@contextmanager
def _served(example: Path, artefact: Path) -> Iterator[str]:
    """The address at which the example's own server shows an artefact."""
    command = ["node", str(example / "serve.mjs"), str(artefact), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            if not address:
                raise BrowserError(f"{command} ended with status {server.wait()}")
            yield address
        finally:
            server.terminate()


def _result(page: Page) -> dict[str, Any]:
    """What the page has to say when it is done."""
    deadline = time.monotonic() + _SECONDS
    while (state := page.value(_STATE)) not in ("done", "failed"):
        if time.monotonic() > deadline:
            raise BrowserError(f"the page is still {state} after {_SECONDS:.0f} s")
        time.sleep(0.1)
    if state == "failed":
        raise BrowserError(str(page.value("document.getElementById('output').dataset.error")))
    found: dict[str, Any] = json.loads(
        page.value("document.getElementById('output').dataset.result")
    )
    return found


def _show(rows: list[Row]) -> None:
    cells = []
    for name in dict.fromkeys(row.case for row in rows):
        here = [row for row in rows if row.case == name]
        cells.append(
            (
                name,
                f"{sum(row.before for row in here)} of {sum(len(row.expected) for row in here)}",
                f"{sum(row.tokens == row.expected for row in here)} of {len(here)}",
                str(len({token for row in here for token in row.tokens})),
                _speed(row.tokens_per_second for row in here if not row.long),
                _speed(row.native_tokens_per_second for row in here if not row.long),
                _speed(row.tokens_per_second for row in here if row.long),
                f"{median(row.prefill_seconds for row in here):.2f} s",
                f"{median(row.load_seconds for row in here):.2f} s",
            )
        )
    columns = (
        *("case", "equal tokens", "texts", "distinct", "tokens/s", "CPU"),
        *("tokens/s, long", "first", "load"),
    )
    title = f"{rows[0].runtime}, threads {rows[0].threads}"
    print_table(Console(), Table(title, columns, tuple(cells)))


def _speed(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{median(known):.0f} ({min(known):.0f} to {max(known):.0f})"


if __name__ == "__main__":
    main()
