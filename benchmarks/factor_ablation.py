"""What each choice in quantizing two factors is worth: everything as by default, but for one thing.

Claims: Σ in B and a Hadamard rotation of the latent quantize better than √Σ in both factors, which
quantizes better than Σ in A; A fitted to B's codes and quantized for the inputs that those give it
loses less; so do statistics of the compressed model, and layers fitted to the dense one's outputs.

    python -m benchmarks.factor_ablation --data DIR [--bits 8,4,3] [--kept 1,0.8,0.6]
                                         [--variants default,both,u] [--method gptq]
                                         [--json FILE --append] [--cache DIR]

Ranks are those of the default search at each kept ratio, whole multiples of 32; at 1, every layer
has the largest factors that have no more parameters than it. Groups of 32. `change` is the rise of
the perplexity over the default's, geometric mean over the corpora: above 0 the default is better.

With --json each point is written as soon as it is known; --append keeps those that the file holds.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asvd_q.recipe.corpora import GENERATED
from asvd_q.report.tables import Table
from benchmarks._compressions import BASE, Case, CasePoint, compute_all, merged, ranks_for
from benchmarks._points import add_append, open_points, tell
from benchmarks.common import Bench, finish, known_names, names, parse_options

__all__ = ["DEFAULT", "VARIANTS", "cases_of", "change", "main", "sections_of"]

DEFAULT = "default"

_NO_REFIT: dict[str, Any] = {"decompose": {"refit": False}, "quantize": {"refit": False}}

VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "both": {"decompose": {"sigma_split": "both", "rotation": "none"}},
    "u": {"decompose": {"sigma_split": "u", "rotation": "none"}},
    "v": {"decompose": {"sigma_split": "v", "rotation": "none"}},
    "both+hadamard": {"decompose": {"sigma_split": "both"}},
    "both+random": {"decompose": {"sigma_split": "both", "rotation": "random"}},
    "A-as-it-was": {"quantize": {"factors": {"aware": {"refit": False}}}},
    "A-hessian-of-B": {"quantize": {"factors": {"aware": {"latent_gram": False}}}},
    "unaware": {"quantize": {"factors": {"aware": {"refit": False, "latent_gram": False}}}},
    "dense-not-refitted": {"quantize": {"refit": False}},
    "not-refitted": _NO_REFIT,
    "not-sequential": _NO_REFIT | {"calibration": {"sequential": False}},
    "minmax": {"quantize": {"clip": "minmax"}},
    "act-order": {"quantize": {"act_order": True, "static_groups": True}},
    "asymmetric": {"quantize": {"symmetric": False}},
}
"""Name → what differs from the default. Of all these only asymmetric codes take more bytes."""


def sections_of(case: Case, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The recipe of a case."""
    codes = {"method": case.method, "bits": case.bits}
    base = merged(BASE, {"decompose": {"ranks": dict(ranks)}, "quantize": codes})
    return merged(base, VARIANTS[case.name])


def cases_of(options: Any, model: str) -> list[Case]:
    """All variants at every width and kept ratio, the default first."""
    return [
        Case(
            model=model,
            window=options.window,
            name=name,
            calibration=options.calibration,
            method=options.method,
            bits=bits,
            kept=kept,
        )
        for bits in options.bits
        for kept in options.kept
        for name in options.variants
    ]


def change(point: CasePoint, default: CasePoint) -> float:
    """Relative rise of the perplexity over the default's, geometric mean over the corpora."""
    shared = point.perplexity.keys() & default.perplexity.keys()
    logs = [math.log(point.perplexity[name] / default.perplexity[name]) for name in shared]
    return math.exp(sum(logs) / len(logs)) - 1


def _table(points: Sequence[CasePoint], corpora: Sequence[str], method: str) -> Table:
    defaults = {(point.bits, point.kept): point for point in points if point.name == DEFAULT}
    rows = []
    for point in points:
        default = defaults.get((point.bits, point.kept))
        rows.append(
            (
                point.name,
                str(point.bits),
                f"{point.kept_ratio:.3f}",
                f"{point.bits_per_weight:.3f}",
                *(f"{point.perplexity[name]:.3f}" for name in corpora),
                "–" if default is None else f"{change(point, default):+.2%}",
            )
        )
    columns = ("variant", "bits", "kept", "bits per weight", *corpora, "change")
    return Table(f"Factors quantized by {method}: perplexity", columns, tuple(rows))


def _numbers(kind: type[int] | type[float]) -> Any:
    return lambda text: tuple(kind(part) for part in names(text))


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=_numbers(int), default=(8, 4, 3))
    parser.add_argument("--kept", type=_numbers(float), default=(1.0, 0.8, 0.6))
    parser.add_argument(
        "--variants", type=lambda text: known_names(text, VARIANTS), default=tuple(VARIANTS)
    )
    parser.add_argument("--method", default="gptq", choices=("gptq", "rtn"))
    parser.add_argument("--cache", type=Path, help="folder of what later runs need not do again")
    add_append(parser)
    options = parse_options(__doc__ or "", parser, calibration=(GENERATED,))
    points = open_points(CasePoint, options, parser)
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.cache or Path(temporary)
        bench = Bench(options, folder=folder / "generated")
        ranks = {kept: ranks_for(bench, kept, folder / "search") for kept in options.kept}

        def compute(case: Case) -> CasePoint:
            assert case.kept is not None
            found = bench.compressed(sections_of(case, ranks[case.kept]))
            return CasePoint.of(case, found, bench)

        cases = cases_of(options, bench.source.name)
        compute_all(cases, points, options.corpora, compute, tell)
    shown: Iterable[CasePoint] = (point for point in points if point.setting in set(cases))
    finish(options, _table(list(shown), options.corpora, options.method), points.content())


if __name__ == "__main__":
    main()
