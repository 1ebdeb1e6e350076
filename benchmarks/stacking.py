"""Low rank under the quantization that people have: our factors, other packages' codes.

Claim: a checkpoint of floating-point factors is a model like any other to bitsandbytes, gptqmodel,
optimum and llm-compressor, and what their codes of its factors cost in perplexity stands beside
what our own of the same factors cost.

    python -m benchmarks.stacking --data DIR [--kept 0.8] [--group-size 32]
                                  [--packages "bitsandbytes NF4,…"]
                                  [--llmcompressor-python PATH] [--cache DIR] [--json FILE]

Factors are those of the recipes: text of the model's own, sequential, refitted, ranks from the
default search. The `transformers` exporter writes them in the model's own type; every package
quantizes that checkpoint at 4 bits on the same calibration windows and saves the result. All
perplexities come from one forward pass in float32: the source's weights, with the matrices in
place of theirs that the saved files stand for. `on disk` is the size of the weight files; our own
codes go through the `bitsandbytes` and `gptq` exporters.

bitsandbytes and optimum need nothing but `import asvd_q.integrations.transformers`, gptqmodel
`import asvd_q.integrations.gptqmodel`. llm-compressor pins older packages, so it runs in an
environment of its own with the checkpoint's own modelling file:

    python -m venv DIR
    DIR/bin/pip install torch==2.13.0 transformers==5.17.0 compressed-tensors==0.19.0 \\
        accelerate datasets loguru numpy pydantic pyyaml
    DIR/bin/pip install --no-deps llmcompressor==0.14.0.1

Without `--llmcompressor-python DIR/bin/python` its row is left out. All of them quantize A for
what the quantized B gives it, but llm-compressor, which takes both Hessians from one pass.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asvd_q.exporter_registry import exporter_class
from asvd_q.quantization import float_type_of
from asvd_q.recipe.corpora import GENERATED
from asvd_q.report.tables import Table, size
from asvd_q.store import Store
from benchmarks._compressions import Case, ranks_for
from benchmarks._peers import examples
from benchmarks._points import tell
from benchmarks._stacked import BITS, LLM_COMPRESSOR, STACKED, Request, over_store, weight_bytes
from benchmarks.common import Bench, finish, known_names, parse_options
from benchmarks.frontier import sections_of

__all__ = ["Row", "main"]

_OWN = {"nf4": ("NF4", "bitsandbytes"), "gptq": (f"GPTQ {BITS}", "gptq")}
"""Method → what the table calls it, and the exporter that writes it."""


_RANK_MULTIPLE = 64
"""Ranks are whole blocks of NF4, as bitsandbytes' kernels for CPUs want them."""


@dataclass(frozen=True)
class Row:
    """A model and what it costs.

    Attributes:
        model: what was done to it.
        disk_bytes: of its weight files; None where no format of ours holds it.
        perplexity: by corpus.
    """

    model: str
    disk_bytes: int | None
    perplexity: dict[str, float]


def _rows(options: Any, bench: Bench, folder: Path) -> Iterator[Row]:
    yield Row("dense", weight_bytes(bench.source.path), bench.perplexities())
    case = Case(
        model=bench.source.name,
        window=options.window,
        name=f"ASVD {options.kept:g}",
        calibration=options.calibration,
        kept=options.kept,
    )
    cache = (options.cache or folder) / "search"
    ranks = ranks_for(bench, options.kept, cache, _RANK_MULTIPLE)

    def store_of(method: str | None) -> Store:
        asked = case.model_copy(update={"method": method, "bits": BITS if method else None})
        sections = sections_of(asked, ranks, options.group_size)
        return bench.compress(sections, folder / f"store-{method}")

    store = store_of(None)
    checkpoint = folder / "factors"
    disk_bytes = _export(store, "transformers", checkpoint)
    yield Row(case.name, disk_bytes, bench.perplexities(store.replaced))
    for method, (label, exporter) in _OWN.items():
        own = store_of(method)
        disk_bytes = _export(own, exporter, folder / f"own-{method}")
        yield Row(f"{case.name} + {label}", disk_bytes, bench.perplexities(own.replaced))
    for label in options.packages:
        if label == LLM_COMPRESSOR and options.llmcompressor_python is None:
            tell(f"{label}: left out, for want of --llmcompressor-python")
            continue
        saved = folder / label.replace(" ", "-")
        saved.mkdir()
        weights = STACKED[label](
            Request(
                checkpoint,
                saved,
                examples(bench),
                options.group_size,
                options.llmcompressor_python,
            )
        )
        perplexities = bench.perplexities(over_store(weights, store))
        yield Row(f"{case.name}, then {label}", weight_bytes(saved), perplexities)


def _export(store: Store, exporter: str, folder: Path) -> int | None:
    """Write a store in one of our formats; the bytes of its weight files."""
    chosen = exporter_class(exporter)()
    if chosen.can_express(store.finished_plan):
        return None
    folder.mkdir()
    chosen.write(store, folder)
    return weight_bytes(folder)


def _table(rows: list[Row], corpora: tuple[str, ...]) -> Table:
    return Table(
        "Codes of low-rank factors: weight files and perplexity",
        ("model", "on disk", *corpora),
        tuple(
            (
                row.model,
                "–" if row.disk_bytes is None else size(row.disk_bytes),
                *(f"{row.perplexity[name]:.3f}" for name in corpora),
            )
            for row in rows
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=float, default=0.8, help="parameters of the layers, kept")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument(
        "--packages",
        type=lambda text: known_names(text, STACKED),
        default=tuple(STACKED),
        help=f"of {', '.join(STACKED)}",
    )
    parser.add_argument(
        "--llmcompressor-python", type=Path, help="an interpreter that has llm-compressor"
    )
    parser.add_argument("--cache", type=Path, help="folder of what later runs need not do again")
    options = parse_options(__doc__ or "", parser, calibration=(GENERATED,))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = Bench(options, folder=(options.cache or folder) / "generated")
        # The checkpoint of factors comes in the type that the model comes in.
        bench.float_type = float_type_of(bench.source.dtype)
        rows = []
        for row in _rows(options, bench, folder):
            tell(f"{row.model}: {row.perplexity}")
            rows.append(row)
    finish(options, _table(rows, options.corpora), [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
