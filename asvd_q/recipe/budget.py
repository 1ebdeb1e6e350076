"""One budget for the whole model, spent layer by layer on whatever form pays there."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from asvd_q.recipe.amounts import Perplexity, Size, perplexity_rise, size_bytes
from asvd_q.recipe.base import Bool, Count, Number, Section, Text
from asvd_q.recipe.quantsettings import Bits, GroupSize

__all__ = ["BUDGET_TARGETS", "BudgetSection"]

BUDGET_TARGETS = ("size", "bits_per_weight", "max_loss_increase", "perplexity", "decode_speed")
"""What a budget can be given as; exactly one of them."""


class BudgetSection(Section):
    """Choice of form, rank, bits and group size for every layer, under one target.

    Layers may stay dense; they may become factors where the recipe has a `decompose` section, and
    codes with a low-rank correction where it has a `correct` section. `quantize` says how
    codes are made; their width and group size are chosen here. The embedding is a choice too, of
    codes or none, where `quantize.embedding` is given ({} is enough), and the output head where
    `quantize.head` is.
    """

    size: Size | None = None
    """Target: bytes of all the model's weights in the format's count, such as "3.2 GiB"; an ONNX
    file's graph, and files beside the weights, come on top."""

    bits_per_weight: Annotated[Number, Field(gt=0, le=32)] | None = None
    """Target: bits that the linear layers of the blocks, and embedding and head where they are
    choices too, take in the format's count, per weight that they had before."""

    max_loss_increase: Annotated[Number, Field(gt=0)] | None = None
    """Target: the smallest model whose predicted loss rises by no more than this, nats."""

    perplexity: Perplexity = None
    """Target: the smallest model whose perplexity on the calibration text, measured once it is
    compressed, stays at or under this: a number, or "+2 %" above the dense model's."""

    decode_speed: Annotated[Number, Field(gt=0)] | None = None
    """Target: tokens per second, one after another, that all linear layers and the output head
    together allow on this machine; attention and the rest are left out. The times of matrices are
    measured in the runtime of `format`, which has to be one that can be timed, such as onnx."""

    format: Text = "store"
    """Whose bytes count, and whose limits hold: store, or an export format that mixes widths, such
    as onnx or compressed-tensors, with the options that it has under `export`."""

    bits: Annotated[tuple[Bits, ...], Field(min_length=1)] = (2, 3, 4, 5, 6, 8)
    """Widths of codes to choose from. One that takes the bytes of a larger one is left out."""

    group_sizes: Annotated[tuple[GroupSize, ...], Field(min_length=1)] = (32, 64, 128)
    """Group sizes to choose from; -1 is one scale per output channel."""

    ranks: Count = 12
    """Ranks that are tried for a layer's factors, at most: multiples of decompose.rank_multiple."""

    correction_ranks: Annotated[tuple[Count, ...], Field(min_length=1)] = (8, 16, 32, 64)
    """Ranks that are tried for a layer's correction."""

    sample: Count = 4096
    """Calibration tokens, spread over all windows, whose inputs and gradients the losses of all
    candidates are predicted from."""

    hybrid: Bool = False
    """Compress the choice once, measure in their places the forms that somewhat smaller and larger
    budgets would take instead, and choose again. Costs a compression and, per layer, about two
    passes over eight windows."""

    @field_validator("bits", "group_sizes", "correction_ranks")
    @classmethod
    def _distinct(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(given)) < len(given):
            raise ValueError("the same value twice: give each one once")
        return given

    @field_validator("group_sizes")
    @classmethod
    def _of_codes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if max(sizes) > 256:
            raise ValueError("allowed are -1 (one scale per output channel) and 16 to 256")
        return sizes

    @model_validator(mode="after")
    def _one_target(self) -> BudgetSection:
        given = [name for name in BUDGET_TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(
                f"needs exactly one target of {', '.join(BUDGET_TARGETS)}, and has {found}"
            )
        return self

    @property
    def size_bytes(self) -> int | None:
        """`size` in bytes."""
        return None if self.size is None else size_bytes(self.size)

    @property
    def perplexity_rise(self) -> float | None:
        """`perplexity` as a share of the dense model's: 0.02 for "+2 %"; None for a number."""
        return perplexity_rise(self.perplexity)

    @property
    def needs_dense_loss(self) -> bool:
        """Whether the target says something only once the dense model's loss is known."""
        return self.perplexity is not None and self.perplexity_rise is None
