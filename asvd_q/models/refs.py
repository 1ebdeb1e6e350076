"""The two nouns that say where a weight lies and what feeds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asvd_q.plan import Role, VocabularyPart, vocabulary_part

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Site", "WeightRef"]


@dataclass(frozen=True)
class WeightRef:
    """One weight to compress, always spoken of as (out, in); an embedding as (vocabulary, hidden).

    Attributes:
        name: key of this weight in plans, records and tables; the module's dotted path, with
            a suffix where one parameter holds several weights.
        module: dotted path of the module that owns the parameter.
        shape: (out, in).
        block: index of the transformer block; None outside the blocks.
        parameter: name of the parameter in its module.
        transposed: the parameter is stored (in, out), as GPT-2's Conv1D does.
        subclass: name of the module's class where it is one derived from torch's Linear or Conv1D.
        rows: half-open range of output rows, for one part of a fused projection.
        expert: index into the leading dimension, for one expert of a fused tensor.
        role: whether it is multiplied with, or its rows are looked up.
        tied: of an embedding whose matrix the output head shares: the head's module.
    """

    name: str
    module: str
    shape: tuple[int, int]
    block: int | None
    parameter: str = "weight"
    transposed: bool = False
    subclass: str | None = None
    rows: tuple[int, int] | None = None
    expert: int | None = None
    role: Role = "linear"
    tied: str | None = None

    @property
    def kind(self) -> str:
        """Last part of the name: the word that patterns and tables use."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def vocabulary(self) -> VocabularyPart | None:
        """Which matrix outside the blocks it is; None inside them."""
        return vocabulary_part(self.role, self.tied, self.block)

    @property
    def tensor_name(self) -> str:
        """Dotted path of the stored parameter."""
        return f"{self.module}.{self.parameter}"

    def take(self, parameter: Tensor) -> Tensor:
        """The weight (out, in) as a view of the stored parameter."""
        weight = parameter if self.expert is None else parameter[self.expert]
        if self.transposed:
            weight = weight.transpose(-1, -2)
        if self.rows is not None:
            weight = weight[self.rows[0] : self.rows[1]]
        if tuple(weight.shape) != self.shape:
            raise ValueError(f"{self.name}: found {tuple(weight.shape)}, expected {self.shape}")
        return weight


@dataclass(frozen=True)
class Site:
    """One place whose activation feeds one or more weights (q, k and v share one).

    Attributes:
        name: dotted path of the first module it feeds.
        block: index of the transformer block; None outside the blocks.
        modules: dotted paths of all modules it feeds, in the order they are called.
        features: width of the activation.
    """

    name: str
    block: int | None
    modules: tuple[str, ...]
    features: int
