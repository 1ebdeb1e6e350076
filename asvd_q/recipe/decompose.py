"""How weights become two factors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from asvd_q.recipe.base import Bool, Count, Number, Section, Text, matches

__all__ = ["DecomposeSection", "Scaling"]

Scaling = Literal["abs_mean", "abs_max", "rms", "fisher", "whitening", "none"]

_POWERS = {"both": 0.5, "u": 1.0, "v": 0.0}
"""What the words of `sigma_split` stand for."""


class DecomposeSection(Section):
    """Low-rank decomposition: W (out, in) becomes A (out, rank) times B (rank, in).

    Source: ASVD, arXiv 2312.05821; whitening from SVD-LLM, arXiv 2403.07378.
    """

    method: Literal["asvd"] = "asvd"
    """The decomposition."""

    scaling: Scaling = "whitening"
    """Statistic of the input that the error is weighted with; none is the plain SVD."""

    alpha: Annotated[Number, Field(ge=0, le=4)] = 0.5
    """Power of the diagonal statistic; whitening has none and ignores it."""

    damping: Annotated[Number, Field(gt=0)] = 1e-6
    """Added to the statistic, relative to its mean; raised where a factorisation fails."""

    sigma_split: Literal["both", "u", "v"] | Annotated[Number, Field(ge=0, le=1)] = "v"
    """Which factor takes the singular values: their root in both, as in the paper, or all in U
    (A) or V (B); a number from 0 to 1 is their power that goes into A."""

    rotation: Literal["none", "hadamard", "random"] = "hadamard"
    """Orthogonal rotation of the latent, folded into both factors: it changes what quantization
    loses, not their product, and costs nothing at run time."""

    kept_ratio: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Parameters of every layer after / before, the same for all; or give `ranks`."""

    ranks: Annotated[dict[Text, Count], Field(min_length=1)] | None = None
    """Rank by pattern of layer name; the last pattern that matches wins, others stay dense."""

    rank_multiple: Count = 32
    """A rank that follows from `kept_ratio` is rounded to a multiple of this."""

    refit: Bool = False
    """Fit each layer's factors to the dense model's outputs, given the inputs that the layers
    compressed before it, in its own block too, leave it; needs `calibration.sequential`."""

    refit_damping: Annotated[Number, Field(gt=0)] = 0.01
    """How much refit distrusts the calibration text, relative to the mean of its Gram matrix."""

    include: tuple[Text, ...] = ("*",)
    """Patterns of layers to decompose, on the full name or its last part."""

    exclude: tuple[Text, ...] = ()
    """Patterns of layers to leave as they are; stronger than `include`."""

    lm_head: Bool = False
    """Decompose the output head too."""

    @field_validator("sigma_split", mode="before")
    @classmethod
    def _word_or_power(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (0 <= value <= 1 if number else value in tuple(_POWERS)):
            raise ValueError(
                "allowed: 'both', 'u', 'v', or a number from 0 to 1, the power of the singular "
                "values that goes into A"
            )
        return value

    @model_validator(mode="after")
    def _one_target(self) -> DecomposeSection:
        if self.kept_ratio is not None and self.ranks is not None:
            raise ValueError("needs one of `kept_ratio` and `ranks`, and has both")
        return self

    @property
    def sigma_power(self) -> float:
        """Power of the singular values that goes into A; the rest goes into B."""
        split = self.sigma_split
        return _POWERS[split] if isinstance(split, str) else split

    @property
    def has_power(self) -> bool:
        """Whether `alpha` has a meaning: whitening and none have no diagonal to raise to it."""
        return self.scaling not in ("whitening", "none")

    @property
    def has_target(self) -> bool:
        """Whether the section itself says which ranks to take; else a search has to."""
        return self.kept_ratio is not None or self.ranks is not None

    @property
    def needs_calibration(self) -> bool:
        """Whether statistics of the activations are wanted."""
        return self.scaling != "none" or self.refit

    def selects(self, layer_name: str) -> bool:
        """Whether `include` and `exclude` let this layer through."""
        return matches(layer_name, self.include) and not matches(layer_name, self.exclude)
