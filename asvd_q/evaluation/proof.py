"""Two proofs of every artefact: its bytes hold the store's weights, and its runtime agrees.

First an unpacker that shares no code with the exporter recovers every layer's matrices from the
files. Then the artefact runs in its real runtime on real tokens, a prefill and several cached
steps, against the store's own Runner.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from asvd_q.artefact import BoundedExporter, Exporter, ParityBounds, Runner
from asvd_q.errors import MissingExtraError, ParityError
from asvd_q.metrics import agreement, kl_divergence, relative_error

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.store import Store

__all__ = ["Proof", "prove", "prove_runtime", "prove_weights"]

_STANDARD_ERRORS = 3.0


class Proof(BaseModel):
    """What was checked of an artefact, and how close it came.

    Attributes:
        layers: whose matrices were recovered from the bytes, every one of them equal.
        status: "proven", or "not run" where the runtime is not installed.
        runtime: what ran it.
        tokens: number of positions compared, prefill and decode steps together.
        decode_steps: cached steps among them.
        relative_error, kl, agreement: see `ParityBounds`.
        detail: why it was not run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int
    status: Literal["proven", "not run"]
    runtime: str | None = None
    tokens: int = 0
    decode_steps: int = 0
    relative_error: float | None = None
    kl: float | None = None
    agreement: float | None = None
    detail: str | None = None


def prove(
    exporter: Exporter, folder: Path, store: Store, reference: Runner, tokens: Tensor
) -> Proof:
    """Both proofs.

    Args:
        folder: the artefact, its metadata file included.
        reference: the store's own Runner.
        tokens: int64 (batch, two or more tokens) of real text; the last eight, or all but the
            first of a shorter one, are decoded one by one.

    Raises:
        ParityError: naming the first layer whose bytes are not the store's, or the bound that
            the runtime misses.
    """
    layers = prove_weights(exporter, folder, store)
    try:
        runner = exporter.open(folder)
    except MissingExtraError as error:
        return Proof(layers=layers, status="not run", detail=str(error))
    bounds = (
        exporter.bounds_of(store.finished_plan)
        if isinstance(exporter, BoundedExporter)
        else exporter.bounds
    )
    proof = prove_runtime(exporter.name, bounds, runner, reference, tokens)
    return proof.model_copy(update={"layers": layers})


def prove_weights(exporter: Exporter, folder: Path, store: Store) -> int:
    """Compare every matrix that the artefact's bytes give with the store's, to the last bit."""
    import torch

    from asvd_q.quantization import TORCH_TYPES, FloatWeight

    missing = {record.name for record in store.records()}
    for name, matrices in exporter.read(folder):
        for slot, weight in store.layer(name).weights.items():
            expected = weight.dequantize()
            if isinstance(weight, FloatWeight) and exporter.float_type is not None:
                expected = expected.to(TORCH_TYPES[exporter.float_type]).float()
            if slot not in matrices or not torch.equal(matrices[slot], expected):
                raise ParityError(
                    f"{exporter.name}: {name} ({slot}) read back from {folder} is not what the "
                    "store holds; the export is withdrawn"
                )
        missing.discard(name)
    if missing:
        raise ParityError(
            f"{exporter.name}: {min(missing)} cannot be found in {folder}; the export is withdrawn"
        )
    return len(store.records())


def prove_runtime(
    name: str,
    bounds: ParityBounds,
    runner: Runner,
    reference: Runner,
    tokens: Tensor,
    decode_steps: int = 8,
) -> Proof:
    """Compare logits on a prefill and on cached steps after it.

    Args:
        name: of the exporter, for messages.

    Raises:
        ParityError: a bound is missed.
    """
    decode_steps = min(decode_steps, tokens.shape[1] - 1)
    expected = _logits(reference, tokens, decode_steps)
    found = _logits(runner, tokens, decode_steps)
    proof = Proof(
        layers=0,
        status="proven",
        runtime=runner.runtime,
        tokens=tokens.numel(),
        decode_steps=decode_steps,
        relative_error=relative_error(expected, found),
        kl=float(kl_divergence(expected, found).mean()),
        agreement=float(agreement(expected, found).double().mean()),
    )
    assert proof.relative_error is not None
    assert proof.kl is not None
    assert proof.agreement is not None
    for word, value, bound, holds in (
        (
            "relative logit error",
            proof.relative_error,
            bounds.relative_error,
            proof.relative_error <= bounds.relative_error,
        ),
        ("KL divergence", proof.kl, bounds.kl, proof.kl <= bounds.kl),
        (
            "arg-max agreement",
            proof.agreement,
            bounds.agreement,
            proof.agreement >= _least_share(bounds.agreement, proof.tokens),
        ),
    ):
        if not holds:
            raise ParityError(
                f"{name}: {word} {value:.3g} over {proof.tokens} tokens in "
                f"{runner.runtime} is beyond {bound:g}, though every layer's bytes are right; the "
                "export is withdrawn"
            )
    return proof


def _least_share(bound: float, count: int) -> float:
    """What a sample of `count` may show where the true share is the bound: three standard errors.

    Near ties between the first two tokens flip by chance, and a proof reads few positions.
    """
    return bound - _STANDARD_ERRORS * math.sqrt(bound * (1 - bound) / count)


def _logits(runner: Runner, tokens: Tensor, decode_steps: int) -> Tensor:
    import torch

    start = tokens.shape[1] - decode_steps
    logits, cache = runner.forward(tokens[:, :start])
    parts = [logits]
    for position in range(start, tokens.shape[1]):
        logits, cache = runner.forward(tokens[:, position : position + 1], cache)
        parts.append(logits)
    return torch.cat(parts, dim=1)
