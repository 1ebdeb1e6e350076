"""The parts of the allocation benchmark: which settings each of them compares."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, get_args

from asvd_q.recipe.corpora import GENERATED
from asvd_q.recipe.decompose import Scaling
from benchmarks._ranks import BASELINES
from benchmarks._setting import Setting
from benchmarks.common import known_names, names

__all__ = ["PARTS", "PartOptions", "add_options", "settings_of"]

_METHODS = (
    ("optimal", "fast"),
    ("strs", "fast"),
    ("optimal", "exact-kl"),
    ("strs", "exact-kl"),
    ("optimal", "exact-perplexity"),
    ("strs", "exact-perplexity"),
    ("optimal", "hybrid"),
    ("strs", "stable_rank"),
    *((name, None) for name in BASELINES),
)
"""Method, and the sensitivity it looks at."""

_SENSITIVITIES = tuple(dict.fromkeys(sensitivity or method for method, sensitivity in _METHODS))

_PLAIN: dict[str, Any] = {"sequential": False, "refit": False}
_SEQUENTIAL: dict[str, Any] = {"sequential": True, "refit": False}
_REFIT: dict[str, Any] = {"sequential": True, "refit": True}


class PartOptions(Protocol):
    """What of the command line says which settings there are."""

    parts: Sequence[str]
    targets: Sequence[float]
    calibration: tuple[str, ...]
    mixture: tuple[str, ...]
    sensitivities: Sequence[str]
    scalings: Sequence[Scaling]
    refit_scalings: Sequence[Scaling]
    window: int


Changes = Iterable[dict[str, Any]]
"""Fields of `Setting` that differ from those it has by itself."""


def _scalings(options: PartOptions) -> Changes:
    return ({"scaling": scaling} for scaling in options.scalings)


def _methods(options: PartOptions) -> Changes:
    return (
        {"method": method, "sensitivity": sensitivity}
        for method, sensitivity in _METHODS
        if (sensitivity or method) in options.sensitivities
    )


def _refits(options: PartOptions) -> Changes:
    return (
        {"scaling": scaling} | refit
        for scaling in options.refit_scalings
        for refit in (_PLAIN, _SEQUENTIAL, _REFIT)
    )


def _calibrations(options: PartOptions) -> Changes:
    return (
        {"calibration": calibration} | refit
        for calibration in (options.calibration, options.mixture, (GENERATED,))
        for refit in (_PLAIN, _REFIT)
    )


def _default(options: PartOptions) -> Changes:
    yield {"calibration": (GENERATED,)} | _REFIT


PARTS: dict[str, Callable[[PartOptions], Changes]] = {
    "scalings": _scalings,
    "methods": _methods,
    "refit": _refits,
    "calibration": _calibrations,
    "default": _default,
}


def settings_of(options: PartOptions, model: str) -> list[Setting]:
    """The dense model, then all settings of the parts, each once."""
    common: dict[str, Any] = {"model": model, "window": options.window}
    dense = Setting(
        **common, method="dense", sensitivity=None, scaling=None, calibration=(), target=1.0
    )
    found = [dense]
    for part in options.parts:
        for changed in PARTS[part](options):
            fields = common | {"calibration": options.calibration} | changed
            found += [Setting(**fields, target=target) for target in options.targets]
    return list(dict.fromkeys(found))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `PartOptions` has beside the common ones."""
    parser.add_argument("--parts", type=_parts, default=tuple(PARTS))
    parser.add_argument(
        "--targets",
        type=_targets,
        default=(0.9473, 0.9001, 0.7996, 0.6968, 0.5949, 0.4976),
        help="kept ratios",
    )
    parser.add_argument(
        "--sensitivities",
        type=lambda text: known_names(text, _SENSITIVITIES),
        default=_SENSITIVITIES,
        help="of the part methods; an allocation of the literature goes by its own name",
    )
    parser.add_argument(
        "--scalings",
        type=_scaling_names,
        default=("abs_mean", "abs_max", "rms", "fisher", "whitening", "none"),
        help="of the part scalings",
    )
    parser.add_argument(
        "--refit-scalings",
        type=_scaling_names,
        default=("whitening", "abs_mean"),
        help="of the part refit",
    )
    parser.add_argument(
        "--mixture",
        type=names,
        default=("wikitext2", "ptb", "tinystories", "pycode"),
        help="of the part calibration",
    )


def _parts(text: str) -> tuple[str, ...]:
    return known_names(text, PARTS)


def _scaling_names(text: str) -> tuple[str, ...]:
    return known_names(text, get_args(Scaling))


def _targets(text: str) -> tuple[float, ...]:
    try:
        found = tuple(map(float, names(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not all(0 < target < 1 for target in found):
        raise argparse.ArgumentTypeError("a target is a kept ratio between 0 and 1")
    return found
