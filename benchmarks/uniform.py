"""Uniform ranks: the published procedures recomputed, and the recipes' default beside them.

Claim: plain SVD, ASVD (abs_mean, α ½) and SVD-LLM's whitening, at one ratio for all layers and
rank multiple 1, give the perplexities that an independent float64 computation gives for the same
procedures; the recipes' default stands beside them at the same number of parameters.

    python -m benchmarks.uniform --data DIR [--ratios 0.9,0.8] [--methods SVD,default]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from asvd_q.report.tables import Table
from asvd_q.search.uniform import break_even_rank
from benchmarks.common import Bench, finish, parse_options

__all__ = ["METHODS", "main"]

METHODS: dict[str, dict[str, Any]] = {
    "SVD": {"scaling": "none"},
    "ASVD": {"scaling": "abs_mean", "alpha": 0.5},
    "whitening": {"scaling": "whitening"},
}
"""Published procedure → its `decompose` settings."""

DEFAULT = "default"
"""What the recipes do: whitening, with ranks that the search finds for the same parameter count."""


def _floored_ranks(bench: Bench, ratio: float) -> dict[str, int]:
    """⌊ratio · out · in / (out + in)⌋ for every layer of the blocks: the published procedures'."""
    return {
        weight.name: int(ratio * break_even_rank(weight.shape))
        for weight in bench.skeleton.weights
        if weight.block is not None
    }


def _searched_ranks(bench: Bench, uniform: dict[str, int], folder: Path) -> dict[str, int]:
    """Ranks from the search that together have no more parameters than the uniform ones."""
    kept = bench.plan({"decompose": {"ranks": uniform}}).kept_ratio
    sections = {"decompose": {"rank_multiple": 1}, "search": {"kept_ratio": kept}}
    return bench.searched_ranks(sections, folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ratios", default="0.9,0.8,0.7,0.6,0.5,0.4", help="nominal kept ratios")
    parser.add_argument("--methods", default=",".join([*METHODS, DEFAULT]))
    options = parse_options(__doc__ or "", parser)
    bench = Bench(options)
    points: list[dict[str, Any]] = [
        {"method": "dense", "kept_ratio": 1.0, "perplexity": bench.perplexities()}
    ]
    with tempfile.TemporaryDirectory() as cache:
        for ratio in map(float, options.ratios.split(",")):
            uniform = _floored_ranks(bench, ratio)
            for method in options.methods.split(","):
                settings = METHODS.get(method, {})
                ranks = uniform
                if method == DEFAULT:
                    ranks = _searched_ranks(bench, uniform, Path(cache))
                section = settings | {"ranks": ranks}
                found = bench.compressed({"decompose": section})
                points.append(
                    {
                        "method": method,
                        "kept_ratio": found.kept_ratio,
                        "perplexity": found.perplexity,
                    }
                )
    rows = tuple(
        (
            str(point["method"]),
            f"{point['kept_ratio']:.4f}",
            *(f"{value:.3f}" for value in point["perplexity"].values()),
        )
        for point in points
    )
    table = Table("Uniform ranks: perplexity", ("method", "kept", *options.corpora), rows)
    finish(options, table, points)


if __name__ == "__main__":
    main()
