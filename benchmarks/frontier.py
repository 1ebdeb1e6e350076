"""Perplexity against bytes: low rank and quantization, alone and together, at equal bytes.

Claim: which of them is on the Pareto front at which size; nothing is left out that costs bytes.

    python -m benchmarks.frontier --data DIR [--kept 0.9,0.8,0.6]
                                  [--factors "RTN 8,GPTQ 4,GPTQ 3"]
                                  [--peers "bitsandbytes,gptqmodel,gptqmodel + EoRA"]
                                  [--group-size 32] [--json FILE --append] [--plot FILE.svg]
                                  [--cache DIR]

Plain RTN, NF4 and GPTQ of all linear layers, and ASVD at several kept ratios with each of them, or
with those that --factors names, on its factors, calibrated as the recipes are (text of the model's
own, sequential, refitted, ranks from the default search). Peers are other packages' own pipelines:
bitsandbytes through transformers, and gptqmodel's quantization of the whole model on the same
calibration windows, alone and with the EoRA adapter that it makes from them.

`layers` are the bytes of the linear layers, `model` those of everything, as a store counts them:
codes at their own width, float16 scales, zero points, the rest in the source's type. For peers
they are computed from what they stored by the same rule, an adapter in the type that it was saved
in, and `on disk` is what they saved. A point is on the front of a corpus when none with as few
bytes has as low a perplexity; by either count, which differ by the same for all.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asvd_q.quantization import float_type_of
from asvd_q.recipe.corpora import GENERATED
from asvd_q.report.tables import Table, size
from benchmarks._compressions import BASE, Case, CasePoint, compute_all, merged, ranks_for
from benchmarks._front import front, plot_front
from benchmarks._peers import PEERS
from benchmarks._points import add_append, open_points, tell
from benchmarks.common import Bench, Compressed, finish, known_names, names, parse_options

__all__ = ["METHODS", "cases_of", "main", "sections_of"]

METHODS: tuple[tuple[str, int], ...] = (
    ("rtn", 8),
    ("gptq", 8),
    ("nf4", 4),
    ("rtn", 4),
    ("gptq", 4),
    ("rtn", 3),
    ("gptq", 3),
    ("gptq", 2),
)
"""Method and width of the codes, of whole models and of factors."""


def sections_of(case: Case, ranks: dict[str, int], group_size: int) -> dict[str, Any]:
    """The recipe of a case that this package carries out."""
    sections: dict[str, Any] = dict(BASE)
    sections["decompose"] = merged(BASE["decompose"], {"ranks": ranks}) if ranks else None
    if case.method is None:
        sections["quantize"] = None
    elif case.method == "nf4":  # blocks of 64, as bitsandbytes has them by itself
        sections["quantize"] = {"method": "nf4", "refit": True}
    else:
        settings = {"method": case.method, "bits": case.bits, "group_size": group_size}
        sections["quantize"] = merged(BASE["quantize"], settings)
    return sections


def cases_of(options: Any, model: str) -> list[Case]:
    """The dense model, whole models in codes, peers, then factors, widest codes first."""
    common: dict[str, Any] = {
        "model": model,
        "window": options.window,
        "calibration": options.calibration,
    }
    found = [Case(**common, name="dense")]
    for method, bits in METHODS:
        found.append(Case(**common, name=_name(method, bits), method=method, bits=bits))
    found += [
        Case(**common, name=f"{peer}: {_name(*coding)}", **coding._asdict())
        for peer in options.peers
        for coding in PEERS[peer].methods
    ]
    for kept in options.kept:
        found.append(Case(**common, name=f"ASVD {kept:g}", kept=kept))
        found += [
            Case(
                **common,
                name=f"ASVD {kept:g} + {_name(method, bits)}",
                method=method,
                bits=bits,
                kept=kept,
            )
            for method, bits in METHODS
            if _name(method, bits) in options.factors
        ]
    return found


def _name(method: str, bits: int, rank: int | None = None) -> str:
    codes = "NF4" if method == "nf4" else f"{method.upper()} {bits}"
    return codes if rank is None else f"{codes} rank {rank}"


def _table(points: Sequence[CasePoint], corpora: Sequence[str]) -> Table:
    fronts = {
        name: front([(point.layer_bytes, point.perplexity[name]) for point in points])
        for name in corpora
    }
    rows = []
    for index, point in sorted(enumerate(points), key=lambda pair: -pair[1].layer_bytes):
        rows.append(
            (
                point.name,
                size(point.layer_bytes),
                size(point.bytes),
                "–" if point.disk_bytes is None else size(point.disk_bytes),
                f"{point.bits_per_weight:.3f}",
                f"{point.kept_ratio:.3f}",
                *(
                    f"{point.perplexity[name]:.3f}{'*' if index in fronts[name] else ' '}"
                    for name in corpora
                ),
            )
        )
    columns = ("model", "layers", "model bytes", "on disk", "bits per weight", "kept", *corpora)
    return Table("Perplexity by bytes; * is on the front of its corpus", columns, tuple(rows))


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kept", type=lambda text: tuple(map(float, names(text))), default=(0.9, 0.8, 0.6)
    )
    codes = tuple(_name(*method) for method in METHODS)
    parser.add_argument("--factors", type=lambda text: known_names(text, codes), default=codes)
    parser.add_argument(
        "--peers",
        type=lambda text: known_names(text, PEERS),
        default=tuple(PEERS),
        help="or '' for none",
    )
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--plot", type=Path, help="where the picture goes; .svg or .png")
    parser.add_argument("--cache", type=Path, help="folder of what later runs need not do again")
    add_append(parser)
    options = parse_options(__doc__ or "", parser, calibration=(GENERATED,))
    points = open_points(CasePoint, options, parser)
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.cache or Path(temporary)
        bench = Bench(options, folder=folder / "generated")
        # What is not quantized counts in the type that the model comes in.
        bench.float_type = float_type_of(bench.source.dtype)

        def compute(case: Case) -> CasePoint:
            peer = case.name.partition(": ")[0]
            if peer in PEERS:
                return PEERS[peer].measure(bench, case, options.group_size)
            if case.kept is None and case.method is None:
                return CasePoint.of(case, _dense(bench), bench)
            ranks = {} if case.kept is None else ranks_for(bench, case.kept, folder / "search")
            found = bench.compressed(sections_of(case, ranks, options.group_size))
            return CasePoint.of(case, found, bench)

        cases = cases_of(options, bench.source.name)
        compute_all(cases, points, options.corpora, compute, tell)
    shown = [point for point in points if point.setting in set(cases)]
    if options.plot is not None:
        plot_front(shown, options.corpora, options.plot)
    finish(options, _table(shown, options.corpora), points.content())


def _dense(bench: Bench) -> Compressed:
    plan = bench.plan({"decompose": {"kept_ratio": 1.0}})
    layers = sum(layer.predicted_bytes for layer in plan)
    return Compressed(1.0, layers, plan.predicted_bytes, bench.perplexities())


if __name__ == "__main__":
    main()
