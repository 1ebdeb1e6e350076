"""The numbers that the decoding benchmark writes down."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

__all__ = ["Point", "Step", "Width", "paying_width"]


class _Numbers(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Numbers):
    """A model in one form.

    Attributes:
        name, model: of the form; of the model.
        kept_ratio: parameters of the blocks' linear layers, after / before; its name says what was
            asked for, which whole ranks do not meet exactly.
        bits: of the blocks' codes; 32 is floating point.
        decode_tokens_per_second, prefill_tokens_per_second: of one sequence, after and in a prompt
            of 128 tokens.
        bytes: of the weights' files.
        token_bytes: of the matrices that a decoded token reads; None for torch.
        peak_memory_bytes: while it is loaded and decodes, beyond what its imports take; the median
            of three processes.
        ratio_to_genai_int4: decoding speed over that of the peer's graph in the same rounds; None
            where it was not measured. `prefill_ratio_to_genai_int4` is the same of the prompt.
        ratio_to_int4: decoding speed over that of our own dense codes in 4 bits.
        allowed_ratio: what the bytes that a token reads allow it to be.
        rounds: that were measured.
    """

    name: str
    model: str
    kept_ratio: float
    bits: int
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    bytes: int
    token_bytes: int | None
    peak_memory_bytes: int
    ratio_to_genai_int4: float | None
    prefill_ratio_to_genai_int4: float | None
    ratio_to_int4: float | None
    allowed_ratio: float | None
    rounds: int


class Step(_Numbers):
    """One form at a batch and a context.

    Attributes:
        batch, context: sequences at once, and tokens of each one's prompt.
        first_token_seconds: from the prompts to the token after them.
        decode_tokens_per_second: of all sequences together.
        first_token_ratio_to_genai_int4, decode_ratio_to_genai_int4: how many times as fast as the
            peer's graph, in the same rounds.
    """

    name: str
    batch: int
    context: int
    first_token_seconds: float
    decode_tokens_per_second: float
    first_token_ratio_to_genai_int4: float
    decode_ratio_to_genai_int4: float


class Width(_Numbers):
    """Factors over dense codes, both in 4 bits, at one width of a model.

    Attributes:
        kept_ratio: of the factors.
        ratio: of the speeds in decoding; more than 1 is faster.
        allowed_ratio: what the bytes that a token reads allow.
        dense_tokens_per_second: the speed of the dense codes.
    """

    width: int
    kept_ratio: float
    ratio: float
    allowed_ratio: float
    dense_tokens_per_second: float


def paying_width(widths: Iterable[Width], kept_ratio: float) -> int | None:
    """The smallest width from which on factors are always faster; None where there is none."""
    first: int | None = None
    here = [one for one in widths if one.kept_ratio == kept_ratio]
    for one in sorted(here, key=lambda one: -one.width):
        if one.ratio <= 1:
            break
        first = one.width
    return first
