"""Real candidates of one layer: its codes are chosen, and what their error does to the loss.

The steps are those of `asvd_q.compression.layer` on the dense model's own inputs. What several
candidates have in common is done once.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from asvd_q.budget.evidence import LayerEvidence
from asvd_q.decomposition import (
    Factors,
    Spectrum,
    latent_rotation,
    refit_left,
    rotate,
    spectrum,
    truncate,
)
from asvd_q.decomposition.choice import make_scaling
from asvd_q.plan import LayerPlan, QuantSpec
from asvd_q.quantization import StoredWeight, quantize
from asvd_q.recipe import DecomposeSection

__all__ = ["LayerTrials"]


class LayerTrials:
    """One layer, and what is known of it so far."""

    def __init__(
        self,
        name: str,
        weight: Tensor,
        evidence: LayerEvidence,
        section: DecomposeSection | None,
        *,
        seed: int,
        fisher: Tensor | None = None,
    ) -> None:
        """
        Args:
            weight: W (out, in), as the store would keep it in floating point.
            section: how factors are made; None where there are none.
            seed: of their rotation.
            fisher: (in,), for `scaling: fisher`.
        """
        self._name = name
        self._weight = weight.double()
        self._evidence = evidence
        self._section = section
        self._seed = seed
        self._fisher = fisher
        self._outputs = evidence.inputs @ weight.float().T
        self._rights: dict[tuple[int, QuantSpec | None], tuple[Factors, Tensor]] = {}

    def loss(self, layer: LayerPlan) -> float:
        """Predicted loss increase of a form, truncation and codes together, nats per token.

        Raises:
            ValueError, NumericsError, LinAlgError: the form cannot be made.
        """
        if layer.rank is None:
            spec = layer.quantization["weight"]
            return 0.0 if spec is None else self._dense(spec)
        return self._factors(layer.rank, layer.quantization["B"], layer.quantization["A"])

    @cached_property
    def truncation(self) -> Tensor:
        """Loss of every rank with factors in floating point: (k + 1,), never rising with rank."""
        curve = self._evidence.losses_by_rank(self._spectrum.left, self._outputs)
        return curve.flip(0).cummax(0).values.flip(0)

    @cached_property
    def _spectrum(self) -> Spectrum:
        assert self._section is not None
        scaling = make_scaling(self._section, self._evidence.statistics, self._fisher)
        return spectrum(self._weight, scaling, self._name)

    def _dense(self, spec: QuantSpec) -> float:
        stored = quantize(self._weight.cpu(), spec, self._gram.cpu())
        return self._evidence.loss(self._applied(stored, self._evidence.inputs) - self._outputs)

    def _factors(self, rank: int, right: QuantSpec | None, left: QuantSpec | None) -> float:
        if (rank, right) not in self._rights:
            if all(known != rank for known, _ in self._rights):
                self._rights.clear()  # trials come rank by rank
            self._rights[rank, right] = self._right(rank, right)
        factors, latent = self._rights[rank, right]
        outputs = latent @ factors.A.float().T
        if left is not None:
            gram = factors.B @ self._gram @ factors.B.T
            outputs = self._applied(quantize(factors.A.cpu(), left, gram.cpu()), latent)
        return self._evidence.loss(outputs - self._outputs)

    def _right(self, rank: int, spec: QuantSpec | None) -> tuple[Factors, Tensor]:
        """The factors with B as it is stored and A fitted to it; B x of the sample."""
        assert self._section is not None
        factors = truncate(self._spectrum, rank, self._section.sigma_power)
        if self._section.rotation != "none":
            rotation = latent_rotation(rank, self._section.rotation, self._seed, self._name)
            factors = rotate(factors, rotation)
        if spec is not None:
            rounded = quantize(factors.B.cpu(), spec, self._gram.cpu()).dequantize().double()
            fitted = Factors(factors.A, rounded.to(factors.A.device))
            factors = refit_left(fitted, self._weight, self._gram)
        return factors, self._evidence.inputs @ factors.B.float().T

    @property
    def _gram(self) -> Tensor:
        return self._evidence.statistics.gram

    def _applied(self, stored: StoredWeight, inputs: Tensor) -> Tensor:
        return inputs @ stored.dequantize(torch.float32).to(inputs.device).T
