"""What the allocation benchmark computes, and what came of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from asvd_q.recipe.decompose import Scaling
from benchmarks._points import Evaluated

__all__ = ["Point", "Setting"]


class Setting(BaseModel):
    """How a model is compressed, and what with; equal settings give equal numbers.

    Attributes:
        model, window: name of the folder; tokens per window, of calibration and evaluation.
        method: what spends the target: `optimal`, `strs` or an allocation of the literature;
            `dense` compresses nothing.
        sensitivity: what the method looks at; None where it looks at singular values alone.
        scaling: of the sensitivities and of the factors.
        sequential, refit: of the compression; the ranks do not depend on them.
        calibration: names of the corpora; none where nothing is compressed.
        target: kept ratio wanted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    window: int
    method: str = "optimal"
    sensitivity: str | None = "fast"
    scaling: Scaling | None = "whitening"
    sequential: bool = False
    refit: bool = False
    calibration: tuple[str, ...]
    target: float

    @property
    def ranks_alone(self) -> Setting:
        """The same without what the ranks do not depend on."""
        return self.model_copy(update={"sequential": False, "refit": False})


class Point(Setting, Evaluated):
    """What came of a setting.

    Attributes:
        kept_ratio: of the parameters of the blocks' linear layers, real.
        seconds: of search, compression and evaluation; what an earlier point has left behind
            is not done again.
    """

    kept_ratio: float

    @property
    def setting(self) -> Setting:
        return Setting.model_validate(self.model_dump(include=set(Setting.model_fields)))
