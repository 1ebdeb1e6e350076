"""What the numbers of a point depend on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from asvd_q import __version__
from asvd_q.evaluation.quality import TokenWindows
from asvd_q.preparation import Prepared, Tokens
from asvd_q.recipe import Recipe

__all__ = ["dense_key", "model_fields", "point_key", "statistics_key"]


def model_fields(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that decides on the compressed model, without what has no effect.

    Recipes with equal fields give the same model, given the same source and the same texts.
    """
    fields = recipe.compression_fields()
    if recipe.decompose is not None:
        if not recipe.decompose.has_power:
            del fields["decompose"]["alpha"]
        if recipe.decompose.scaling == "none":
            del fields["decompose"]["damping"]
    for name in ("search", "budget"):
        section = getattr(recipe, name)
        fields[name] = None if section is None else section.model_dump(mode="json")
    if recipe.search is not None:
        del fields["search"]["verify"]
    if recipe.budget is not None:
        fields["export"] = [export.model_dump(mode="json") for export in recipe.export]
    return fields


def point_key(prepared: Prepared, tokens: Tokens, *, distances: bool) -> str:
    """Hash of everything that a point's numbers depend on."""
    return _hash(
        **_machine(prepared),
        float_type=prepared.float_type,
        recipe=model_fields(prepared.recipe),
        calibration=None if tokens.calibration is None else _tokens(tokens.calibration),
        texts=[_text(text) for text in tokens.texts],
        distances=distances,
    )


def dense_key(prepared: Prepared, text: TokenWindows) -> str:
    """Hash of everything that a dense model's logits for a text depend on, cut into batches."""
    evaluate = prepared.recipe.evaluate
    batch_size = None if evaluate is None else evaluate.batch_size
    return _hash(**_machine(prepared), text=_text(text), batch_size=batch_size)


def statistics_key(prepared: Prepared, tokens: Tokens) -> str | None:
    """Equal where points look at the same statistics of the dense model; None where they do not.

    Those of a compressed model are each point's own.
    """
    recipe = prepared.recipe
    if tokens.calibration is None or recipe.calibration is None:
        return None
    if recipe.calibration.sequential or recipe.refits:
        return None
    return _hash(
        **_machine(prepared),
        calibration=_tokens(tokens.calibration),
        batch_size=recipe.calibration.batch_size,
    )


def _machine(prepared: Prepared) -> dict[str, Any]:
    return {
        "asvd_q": __version__,
        "torch": torch.__version__,
        "device": prepared.device,
        "compute_dtype": prepared.recipe.compute_dtype,
        "weights": prepared.source.identity.weights_sha256,
    }


def _text(text: TokenWindows) -> list[str]:
    return [text.corpus, text.split, text.protocol, _tokens(text.tokens)]


def _tokens(tokens: Tensor) -> str:
    return hashlib.sha256(repr(tuple(tokens.shape)).encode() + tokens.numpy().tobytes()).hexdigest()


def _hash(**content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
