"""Real candidates of one layer: its codes are chosen, and what their error does to the loss.

The steps are those of `asvd_q.compression`, on the dense model's own inputs. What several
candidates have in common is done once.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from asvd_q.budget.evidence import LayerEvidence
from asvd_q.compression.correct import corrected
from asvd_q.compression.matrices import stored_left, stored_matrix
from asvd_q.decomposition import (
    CorrectionTarget,
    Factors,
    Spectrum,
    latent_rotation,
    rotate,
    spectrum,
    truncate,
)
from asvd_q.decomposition.choice import make_scaling
from asvd_q.plan import FloatType, LayerPlan, QuantSpec
from asvd_q.quantization import TORCH_TYPES, StoredWeight
from asvd_q.recipe import Recipe

__all__ = ["LayerTrials"]

_GAIN = 0.7
"""Of what a correction found after quantization loses: what a better one loses at least."""


class LayerTrials:
    """One layer, and what is known of it so far."""

    def __init__(
        self,
        name: str,
        weight: Tensor,
        evidence: LayerEvidence,
        recipe: Recipe,
        float_type: FloatType,
        fisher: Tensor | None = None,
    ) -> None:
        """
        Args:
            weight: W (out, in), as the source keeps it.
            recipe: says how factors, codes and corrections are made.
            float_type: of matrices that are not quantized; codes of W itself, and corrections
                beside them, are of W rounded to it, as in the store.
            fisher: (in,), for `scaling: fisher`.
        """
        assert recipe.quantize is not None
        self._name = name
        self._weight = weight.double()
        self._rounded = weight.to(TORCH_TYPES[float_type]).double()
        self._evidence = evidence
        self._recipe = recipe
        self._float_type: FloatType = float_type
        self._aware = recipe.quantize.factors.aware
        self._fisher = fisher
        self._outputs = evidence.inputs @ weight.float().T
        self._rights: dict[tuple[int, QuantSpec | None], tuple[StoredWeight, Tensor]] = {}
        self._factors_of_rank: tuple[int, Factors] | None = None
        self._residuals: dict[QuantSpec, Tensor] = {}
        self._bases: dict[QuantSpec, StoredWeight] = {}

    def loss(self, layer: LayerPlan) -> float:
        """Predicted loss increase of a form, truncation and codes together, nats per token.

        Raises:
            ValueError, NumericsError, LinAlgError: the form cannot be made.
            MissingExtraError: the package that is to quantize is not installed.
        """
        match layer.form:
            case "dense":
                return self._dense(layer)
            case "factors":
                return self._factors(layer)
            case "correction":
                return self._correction(layer)

    def bound(self, layer: LayerPlan) -> float:
        """What a form with a rank loses at least, from what is known without making it.

        Of corrections it is a rule: what the best one beside the codes of W itself would lose, in
        floating point, less what choosing both together can gain.
        """
        assert layer.rank is not None
        if layer.form == "factors":
            return float(self.truncation[layer.rank])
        spec = layer.quantization["weight"]
        curve = None if spec is None else self._residuals.get(spec)
        return 0.0 if curve is None else _GAIN * float(curve[layer.rank])

    @cached_property
    def truncation(self) -> Tensor:
        """Loss of every rank with factors in floating point: (k + 1,), never rising with rank."""
        return _monotone(self._evidence.losses_by_rank(self._spectrum.left, self._outputs))

    @cached_property
    def _spectrum(self) -> Spectrum:
        section = self._recipe.decompose
        assert section is not None
        scaling = make_scaling(section, self._evidence.statistics, self._fisher)
        return spectrum(self._weight, scaling, self._name)

    @cached_property
    def _target(self) -> CorrectionTarget:
        return CorrectionTarget(self._rounded, self._gram, self._name)

    def _dense(self, layer: LayerPlan) -> float:
        spec = layer.quantization["weight"]
        if spec is None:
            return 0.0
        stored = stored_matrix(self._rounded, layer, "weight", self._float_type, self._gram)
        errors = self._applied(stored, self._evidence.inputs) - self._outputs
        correct = self._recipe.correct
        if correct is not None and correct.selects(self._name) and spec not in self._residuals:
            left = self._target.residual_spectrum(stored.dequantize()).left
            self._residuals[spec] = _monotone(self._evidence.losses_by_rank(left, -errors))
            if correct.method == "after":  # the other methods choose codes of their own
                self._bases[spec] = stored
        return self._evidence.loss(errors)

    def _factors(self, layer: LayerPlan) -> float:
        assert layer.rank is not None
        factors = self._of_rank(layer.rank)
        key = (layer.rank, layer.quantization["B"])
        if key not in self._rights:
            right = stored_matrix(factors.B, layer, "B", self._float_type, self._gram)
            self._rights[key] = right, self._applied(right, self._evidence.inputs)
        right, latent = self._rights[key]
        left = stored_left(
            factors, right, self._weight, layer, self._float_type, self._gram, self._aware
        )
        return self._evidence.loss(self._applied(left, latent) - self._outputs)

    def _of_rank(self, rank: int) -> Factors:
        """The exact factors; only those of the rank that was asked for last are kept."""
        if self._factors_of_rank is None or self._factors_of_rank[0] != rank:
            section = self._recipe.decompose
            assert section is not None
            factors = truncate(self._spectrum, rank, section.sigma_power)
            if section.rotation != "none":
                rotation = latent_rotation(rank, section.rotation, self._recipe.seed, self._name)
                factors = rotate(factors, rotation)
            self._factors_of_rank = rank, factors
            self._rights.clear()
        return self._factors_of_rank[1]

    def _correction(self, layer: LayerPlan) -> float:
        section, spec = self._recipe.correct, layer.quantization["weight"]
        assert section is not None
        assert spec is not None
        stored = corrected(
            self._target,
            layer,
            section.model_copy(update={"rounds": 1}),  # which brings most of what all bring
            self._recipe.seed,
            float_type=self._float_type,
            aware=self._aware,
            base=self._bases.get(spec),
        ).stored
        inputs = self._evidence.inputs
        outputs = self._applied(stored["weight"], inputs)
        outputs += self._applied(stored["A"], self._applied(stored["B"], inputs))
        return self._evidence.loss(outputs - self._outputs)

    @property
    def _gram(self) -> Tensor:
        return self._evidence.statistics.gram

    def _applied(self, stored: StoredWeight, inputs: Tensor) -> Tensor:
        return inputs @ stored.dequantize(torch.float32).to(inputs.device).T


def _monotone(curve: Tensor) -> Tensor:
    """The smallest curve that never rises with rank and is nowhere below the given one."""
    return curve.flip(0).cummax(0).values.flip(0)
