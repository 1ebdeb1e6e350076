"""Where a low-rank correction is put beside the codes of a layer, and how it is made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asvd_q.recipe.base import Count, Section, Text, matches

__all__ = ["CorrectSection"]


class CorrectSection(Section):
    """Low-rank correction: W (out, in) becomes coarse codes Q plus A (out, rank) times B
    (rank, in).

    `quantize` says how Q (slot weight), A and B are stored. Layers that `decompose` factorises
    cannot be corrected too.

    Source: QERA, arXiv 2410.06040; EoRA, arXiv 2410.21271; GPTQ-intrinsic LoRA, arXiv 2606.01412.
    """

    method: Literal["after", "inside", "alternate"] = "alternate"
    """after: A·B makes up for what quantizing W lost. inside: B reads the directions of the
    largest inputs, the same B for all layers that share an input, and the codes are chosen for
    what it leaves. alternate: A·B begins as the largest part of W, then codes and A·B are made in
    turns, each for what the other leaves. Where A or B is quantized, the last two also try codes
    that make up for that."""

    rounds: Count = 4
    """alternate: how often codes are made, at most; it ends where the error stops falling."""

    rotation: Literal["none", "hadamard", "random"] = "hadamard"
    """Orthogonal rotation of the latent, folded into A and B, as in `decompose`; the same one for
    all layers of a rank."""

    rank: Count | None = None
    """Rank of every layer's correction; or give `ranks`."""

    ranks: Annotated[dict[Text, Count], Field(min_length=1)] | None = None
    """Rank by pattern of layer name; the last pattern that matches wins, others stay without."""

    include: tuple[Text, ...] = ("*",)
    """Patterns of layers to correct, on the full name or its last part."""

    exclude: tuple[Text, ...] = ()
    """Patterns of layers to leave without a correction; stronger than `include`."""

    @model_validator(mode="after")
    def _one_target(self) -> CorrectSection:
        if self.rank is not None and self.ranks is not None:
            raise ValueError("needs one of `rank` and `ranks`, and has both")
        return self

    @property
    def has_target(self) -> bool:
        """Whether the section itself says which ranks to take."""
        return self.rank is not None or self.ranks is not None

    def selects(self, layer_name: str) -> bool:
        """Whether `include` and `exclude` let this layer through."""
        return matches(layer_name, self.include) and not matches(layer_name, self.exclude)
