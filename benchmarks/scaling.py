"""Which statistic to weigh the error with, to which power, and how much text it takes.

Claims: what every scaling costs at every power α, at the same ratio for all layers, on the corpus
that it was calibrated on and on others; and how the cost falls, and how far it spreads, with the
number of calibration windows.

    python -m benchmarks.scaling [--data DIR] [--parts grid,samples] [--ratios 0.9,0.8,0.6]
                                 [--alphas 0.1,0.25,0.5,0.75,1,2] [--counts 1,2,4,8,16,32,64]
                                 [--seeds 1,2,3,4] [--calibrated NAME] [--search]
                                 [--cache DIR] [--json FILE] [--plot DIR]

grid      abs_mean, abs_max, rms, fisher at every α; whitening and plain SVD, which have none
samples   whitening at a kept ratio of 0.8, calibrated on different windows for every seed

Ranks are the same share of every layer, or with --search those that the search finds with the very
scaling; rank multiple 1. Calibration reads the train part of --calibrated (the first corpus),
evaluation the test parts. A point is kept in --cache as soon as it is known, and a later call does
not compute it again.
"""

from __future__ import annotations

import argparse
from typing import Any, get_args

from asvd_q.recipe.decompose import Scaling
from asvd_q.study.record import StudyRecord
from benchmarks._studies import (
    StudyOptions,
    calibration,
    finish_studies,
    parse_study_options,
    study,
)
from benchmarks.common import known_names, names

__all__ = ["PARTS", "SAMPLED_RATIO", "main"]

SAMPLED_RATIO = 0.8
"""Kept of the models that differ in the number of calibration windows."""

_RATIO, _SEARCHED = "decompose.kept_ratio", "search.kept_ratio"


def _grid(options: StudyOptions, recipe: dict[str, Any]) -> StudyRecord:
    own = options.own
    ratio = _SEARCHED if own.search else _RATIO
    vary = {
        "decompose.scaling": list(get_args(Scaling)),
        "decompose.alpha": list(map(float, own.alphas)),
        ratio: list(map(float, own.ratios)),
    }
    plot = {
        "kind": "lines",
        "x": "decompose.alpha",
        "series": "decompose.scaling",
        "panel": ratio,
    }
    name = f"Scalings, calibrated on {_calibrated(options)}"
    return study(options, "scaling-grid", recipe, {"name": name, "vary": vary, "plot": plot})


def _samples(options: StudyOptions, recipe: dict[str, Any]) -> StudyRecord:
    own = options.own
    fields = {
        "name": f"Calibration windows of {_calibrated(options)}",
        "set": {_SEARCHED if own.search else _RATIO: SAMPLED_RATIO},
        "vary": {"calibration.samples": list(map(int, own.counts))},
        "repeat": {"calibration.seed": list(map(int, own.seeds))},
        "plot": {"kind": "lines", "x": "calibration.samples"},
    }
    return study(options, "scaling-samples", recipe, fields)


PARTS = {"grid": _grid, "samples": _samples}


def _calibrated(options: StudyOptions) -> str:
    return str(options.own.calibrated or options.corpora[0])


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: known_names(text, PARTS), default=tuple(PARTS))
    parser.add_argument("--ratios", type=names, default=("0.9", "0.8", "0.6"))
    parser.add_argument("--alphas", type=names, default=("0.1", "0.25", "0.5", "0.75", "1", "2"))
    parser.add_argument("--counts", type=names, default=("1", "2", "4", "8", "16", "32", "64"))
    parser.add_argument("--seeds", type=names, default=("1", "2", "3", "4"))
    parser.add_argument("--calibrated", help="the corpus to calibrate on; the first one")
    parser.add_argument("--search", action="store_true", help="search the ranks")
    with parse_study_options(__doc__ or "", parser) as options:
        recipe: dict[str, Any] = {
            "calibration": calibration(options, (_calibrated(options),)),
            "decompose": {"rank_multiple": 1},
        }
        if options.own.search:
            recipe["search"] = {"verify": False}
        finish_studies(options, {part: PARTS[part](options, recipe) for part in options.own.parts})


if __name__ == "__main__":
    main()
