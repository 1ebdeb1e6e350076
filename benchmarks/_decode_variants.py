"""In which forms a model decodes, and the sections of the recipe that makes each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["FLOAT", "INT4", "MERGED", "PEER", "TORCH", "Variant", "asvd_int4", "variants"]

TORCH, FLOAT, INT4, PEER = "torch float32", "ONNX float32", "int4", "GenAI int4"
MERGED = "int4 merged"
"""With `merge_products`."""

_HEAD_BITS = 4


@dataclass(frozen=True)
class Variant:
    """One form.

    Attributes:
        maker: torch runs the checkpoint itself; genai is the builder of ONNX Runtime GenAI.
        bits: of the blocks' codes; 32 is floating point.
        sections: of our own recipe.
        options: of the ONNX format, where they are not the benchmark's.
    """

    name: str
    maker: Literal["torch", "asvd-q", "genai"] = "asvd-q"
    bits: int = 32
    sections: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def asvd_int4(kept_ratio: float) -> str:
    """What the table calls factors in 4 bits."""
    return f"ASVD {kept_ratio} + int4"


def variants(
    group: int, *, float_head: bool = False, kept: tuple[float, ...] = (0.9, 0.8, 0.5)
) -> dict[str, Variant]:
    """All forms by name.

    Speed does not depend on which values the weights have, so ranks are uniform, factors those of
    the plain SVD, and codes the nearest. Whatever the codes of the blocks, the head is in 4 bits,
    and the embedding where it is the head's matrix, as the peer has them.

    Args:
        group: weights per scale.
        float_head: leave the head in floating point.
    """
    rest = {"method": "rtn", "bits": _HEAD_BITS, "group_size": group, "clip": "minmax"}
    outside = {} if float_head else {"head": rest}

    def codes(method: str, **settings: Any) -> dict[str, Any]:
        return {"quantize": {"method": method, "group_size": group, **settings, **outside}}

    int4 = codes("rtn", bits=4)
    found = [
        Variant(TORCH, maker="torch"),
        Variant(FLOAT),
        Variant(INT4, bits=4, sections=int4),
        Variant(MERGED, bits=4, sections=int4, options={"merge_products": True}),
        *(
            Variant(
                asvd_int4(ratio),
                bits=4,
                sections=int4 | {"decompose": {"scaling": "none", "kept_ratio": ratio}},
            )
            for ratio in kept
        ),
        Variant("NF4", bits=4, sections=codes("nf4")),
        Variant("int2", bits=2, sections=codes("rtn", bits=2)),
        Variant(PEER, maker="genai", bits=4),
    ]
    return {variant.name: variant for variant in found}
