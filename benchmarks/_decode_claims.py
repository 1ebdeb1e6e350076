"""What is claimed of the speed of decoding, judged by the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from benchmarks._decode_points import Point
from benchmarks._decode_variants import INT4, PEER

__all__ = ["Claim", "claims"]

_NOISE = 0.02
"""By which the ratio of one graph's speeds to its own differs from 1."""

_MEMORY_NOISE = 0.005
"""The same of its memory: five processes of one graph were 0.6 to 0.9 percent apart, and of these
some are judged by their median."""

_SHARE = 0.85
"""Of what the bytes allow."""

_WIDE = "wide"


class Claim(BaseModel):
    """A number that has to be at least so large.

    Attributes:
        granted: less than `least` by this share holds too.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    value: float
    least: float
    granted: float = 0.0

    @property
    def holds(self) -> bool:
        return self.value >= self.least * (1 - self.granted)

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "does not hold"
        return f"{self.text}: {self.value:.3f}, wanted {self.least:.3f}: {verdict}"


def claims(points: Sequence[Point]) -> list[Claim]:
    """Those that can be judged: both sides of each were measured."""
    models = dict.fromkeys(point.model for point in points)
    return [
        claim
        for model in models
        for claim in _of_model({one.name: one for one in points if one.model == model}, model)
    ]


def _of_model(points: dict[str, Point], model: str) -> Iterator[Claim]:
    ours, peer = points.get(INT4), points.get(PEER)
    if ours is not None and peer is not None:
        assert ours.ratio_to_genai_int4 is not None  # both were in the same rounds
        assert ours.prefill_ratio_to_genai_int4 is not None
        speeds = {
            "decoding": ours.ratio_to_genai_int4,
            "prefill": ours.prefill_ratio_to_genai_int4,
        }
        for name, value in speeds.items():
            text = f"{model}: {INT4} over {PEER}, {name}"
            yield Claim(text=text, value=value, least=1, granted=_NOISE)
        memory = peer.peak_memory_bytes / ours.peak_memory_bytes
        text = f"{model}: memory of {PEER} over {INT4}"
        yield Claim(text=text, value=memory, least=1, granted=_MEMORY_NOISE)
    if model != _WIDE:
        return
    for point in points.values():
        if point.kept_ratio < 1 and point.ratio_to_int4 is not None:
            assert point.allowed_ratio is not None
            yield Claim(
                text=f"{model}: {point.name} over {INT4}, decoding",
                value=point.ratio_to_int4,
                least=_SHARE * point.allowed_ratio,
            )
