"""Uniform ranks: the published procedures recomputed, and the recipes' default beside them.

Claim: plain SVD, ASVD (abs_mean, α ½) and SVD-LLM's whitening, at one ratio for all layers and
rank multiple 1, give the perplexities that an independent float64 computation gives for the same
procedures; the recipes' default stands beside them at the same number of parameters.

    python -m benchmarks.uniform --data DIR [--ratios 0.9,0.8] [--json FILE]
"""

from __future__ import annotations

import argparse
from typing import Any

from asvd_q.report.tables import Table
from asvd_q.search.uniform import break_even_rank
from benchmarks.common import Bench, finish, parse_options

__all__ = ["METHODS", "main"]

METHODS: dict[str, dict[str, Any]] = {
    "SVD": {"scaling": "none"},
    "ASVD": {"scaling": "abs_mean", "alpha": 0.5},
    "whitening": {"scaling": "whitening"},
    "default": {},
}
"""Method → its `decompose` settings; the default is whatever a recipe gets that says nothing."""


def _floored_ranks(bench: Bench, ratio: float) -> dict[str, int]:
    """⌊ratio · out · in / (out + in)⌋ for every layer of the blocks: the published procedures'."""
    return {
        weight.name: int(ratio * break_even_rank(weight.shape))
        for weight in bench.skeleton.weights
        if weight.block is not None
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ratios", default="0.9,0.8,0.7,0.6,0.5,0.4", help="nominal kept ratios")
    options = parse_options(__doc__ or "", parser)
    ratios = [float(ratio) for ratio in options.ratios.split(",")]
    bench = Bench(options)
    points = [{"method": "dense", "kept_ratio": 1.0, "perplexity": bench.perplexities()}]
    for ratio in ratios:
        for method, settings in METHODS.items():
            section = settings | {"ranks": _floored_ranks(bench, ratio)}
            kept, perplexity = bench.compressed_perplexities({"decompose": section})
            points.append({"method": method, "kept_ratio": kept, "perplexity": perplexity})
    rows = tuple(
        (
            str(point["method"]),
            f"{point['kept_ratio']:.4f}",
            *(f"{value:.3f}" for value in point["perplexity"].values()),  # type: ignore[attr-defined]
        )
        for point in points
    )
    table = Table("Uniform ranks: perplexity", ("method", "kept", *options.corpora), rows)
    finish(options, table, points)


if __name__ == "__main__":
    main()
