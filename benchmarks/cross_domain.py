"""Which text to calibrate on, when the compressed model is to read other text.

Claims: what every choice of calibration text costs on every corpus: one corpus, the mixture of all,
and text that the model samples itself; for whitening, which fits the calibration text, and for
ASVD's diagonal (abs_mean, α ½), which knows it less well; with the factors in floating point and in
GPTQ codes, which are calibrated too, with and without A fitted anew to B's codes.

    python -m benchmarks.cross_domain [--data DIR] [--ratios 0.8,0.6]
                                      [--scalings whitening,abs_mean]
                                      [--quantize none,gptq3,gptq3-unfitted]
                                      [--cache DIR] [--json FILE] [--plot DIR]

Every layer keeps the same ratio, and factors are those of the dense model's statistics. Calibration
reads the train part of a corpus, evaluation the test part. A point is kept in --cache as soon as it
is known, and a later call does not compute it again.
"""

from __future__ import annotations

import argparse
from typing import Any

from asvd_q.recipe.corpora import GENERATED
from benchmarks._studies import ALL, calibration, finish_studies, parse_study_options, study
from benchmarks.common import known_names, names

__all__ = ["QUANTIZE", "main"]

_GPTQ = {"method": "gptq", "bits": 3, "group_size": 32, "symmetric": False}

QUANTIZE: dict[str, dict[str, Any] | None] = {
    "none": None,
    "gptq3": _GPTQ,
    "gptq3-unfitted": _GPTQ | {"factors": {"aware": {"refit": False}}},
}
"""Name → `quantize` section."""


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", type=names, default=("0.8", "0.6"), help="kept ratios")
    parser.add_argument("--scalings", type=names, default=("whitening", "abs_mean"))
    parser.add_argument(
        "--quantize", type=lambda text: known_names(text, QUANTIZE), default=tuple(QUANTIZE)
    )
    with parse_study_options(__doc__ or "", parser) as options:
        own = options.own
        rows = {name: (name,) for name in (*options.corpora, GENERATED)} | {ALL: options.corpora}
        vary = {
            "calibration": {name: calibration(options, row) for name, row in rows.items()},
            "decompose.scaling": list(own.scalings),
            "decompose.kept_ratio": [float(ratio) for ratio in own.ratios],
            "quantize": {name: QUANTIZE[name] for name in own.quantize},
        }
        record = study(
            options,
            "cross_domain",
            # A factor's groups of 32 codes lie along the rank.
            {"decompose": {"alpha": 0.5, "rank_multiple": 32}},
            {
                "name": "Calibrated on one text, evaluated on another",
                "vary": vary,
                "plot": {
                    "kind": "matrix",
                    "rows": "calibration",
                    "panel": [key for key in vary if key != "calibration"],
                },
            },
        )
        finish_studies(options, {"cross_domain": record})


if __name__ == "__main__":
    main()
