"""A model's quality text by text, beside the dense model's where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asvd_q.artefact import Runner
from asvd_q.evaluation.quality import Quality, TokenWindows, compare_quality, evaluate_quality
from asvd_q.progress import Progress

__all__ = ["Assessed", "assess"]


@dataclass(frozen=True)
class Assessed:
    """Of one text.

    Attributes:
        quality: of the model, with its distance from the dense one.
        dense: of that on the same tokens.
    """

    quality: Quality
    dense: Quality | None = None

    @property
    def change(self) -> float | None:
        """Rise of the perplexity over the dense model's, as a share of it."""
        return None if self.dense is None else self.quality.perplexity / self.dense.perplexity - 1


def assess(
    runner: Runner,
    reference: Runner | None,
    texts: Sequence[TokenWindows],
    *,
    batch_size: int,
    progress: Progress,
) -> list[Assessed]:
    """Evaluate a model on every text.

    Args:
        reference: the dense model; None leaves the comparison out.
        batch_size: windows per forward pass.
    """
    found = []
    for text in texts:

        def advance(done: int, total: int, stage: str = f"evaluating on {text.corpus}") -> None:
            progress(stage, done, total)

        if reference is None:
            quality = evaluate_quality(runner, text, batch_size=batch_size, progress=advance)
            found.append(Assessed(quality))
        else:
            dense, quality = compare_quality(
                reference, runner, text, batch_size=batch_size, progress=advance
            )
            found.append(Assessed(quality, dense))
    return found
