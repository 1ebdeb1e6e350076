"""How one matrix is quantized, and how many bytes that takes; plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from asvd_q.methods import METHODS

__all__ = [
    "FLOAT_BYTES",
    "NF4_BLOCKS",
    "NF4_NESTED_BLOCK",
    "FloatType",
    "QuantSpec",
    "store_bytes",
]

FloatType = Literal["float32", "float16", "bfloat16"]
FLOAT_BYTES: dict[FloatType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}

NF4_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Weights that may share a scale in NF4: what bitsandbytes' kernels take."""

NF4_NESTED_BLOCK = 256
"""Scales of NF4 that share a scale of their own under double quantization."""


class QuantSpec(BaseModel):
    """How one weight matrix is quantized.

    Settings that do not belong to the method are refused; those that are left out take the
    method's defaults (`asvd_q.methods`).

    Attributes:
        method: a name of `asvd_q.methods.METHODS`.
        bits: width of a code.
        group_size: input channels that share a scale; -1 is one scale per output channel, and so
            is a group at least as wide as the matrix. For nf4: consecutive weights, row after
            row, that share one (bitsandbytes' block size).
        symmetric: the zero point is 2^(bits−1) and not stored.
        clip: `minmax` takes a group's range whole; `mse` shrinks it to where the squared error
            is smallest, weighted for gptq by what an error in each channel costs.
        act_order: gptq: quantize the channels with the largest mean square activation first.
        static_groups: gptq: choose all scales before the first code, for groups of columns as
            they stand, so that act order needs no permutation in the file.
        damping: gptq: added to the diagonal of the Gram matrix, relative to its mean.
        backend: gptq: `native`, or `gptqmodel` for that package's implementation.
        double_quant: nf4: the blocks' scales are quantized too, to 8 bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "rtn"
    bits: int = Field(default=8, ge=2, le=8)
    group_size: int = Field(default=128, ge=-1)
    symmetric: bool = True
    clip: Literal["minmax", "mse"] = "minmax"
    act_order: bool | None = None
    static_groups: bool | None = None
    damping: float | None = Field(default=None, gt=0, lt=1)
    backend: Literal["native", "gptqmodel"] | None = None
    double_quant: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_the_method(cls, data: Any) -> Any:
        """Refuse what belongs to other methods, and fill in the defaults of this one."""
        if not isinstance(data, Mapping):
            return data
        given = {key: value for key, value in data.items() if value is not None}
        name = given.get("method", "rtn")
        if not isinstance(name, str) or name not in METHODS:
            raise ValueError(f"no method is called {name!r}: use {' or '.join(METHODS)}")
        settings = METHODS[name].settings
        for key in given:
            owners = [other for other, method in METHODS.items() if key in method.settings]
            if owners and name not in owners:
                raise ValueError(
                    f"{key} is a setting of {' and '.join(owners)}, and the method is {name}, "
                    f"which has {', '.join(settings)}"
                )
        return {**settings, **given}

    @model_validator(mode="after")
    def _possible(self) -> QuantSpec:
        if self.method == "nf4":
            if self.bits != 4:
                raise ValueError(f"bits {self.bits} is not possible: NF4 has 4")
            if self.group_size not in NF4_BLOCKS:
                raise ValueError(
                    f"group_size {self.group_size} is not possible for nf4: use one of "
                    f"{', '.join(map(str, NF4_BLOCKS))}"
                )
        elif self.group_size != -1 and not 16 <= self.group_size <= 256:
            raise ValueError(
                f"group_size {self.group_size} is not possible: use -1 (one scale per output "
                "channel) or a size from 16 to 256"
            )
        return self

    @model_serializer(mode="wrap")
    def _own_settings(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        own = ("method", *METHODS[self.method].settings)
        return {key: value for key, value in handler(self).items() if key in own}

    def groups(self, in_features: int) -> int:
        """Number of scales that each row of a matrix with `in_features` columns needs."""
        width = self.group_width(in_features)
        return -(-in_features // width)

    def group_width(self, in_features: int) -> int:
        """Input channels per scale, `-1` and over-wide groups resolved."""
        return in_features if self.group_size == -1 else min(self.group_size, in_features)

    def permutes(self, in_features: int) -> bool:
        """Whether columns are grouped in another order than they stand, which is then stored."""
        return bool(self.act_order) and not self.static_groups and self.groups(in_features) > 1


def store_bytes(shape: tuple[int, int], spec: QuantSpec | None, float_type: FloatType) -> int:
    """Bytes of one matrix (out, in), codes counted at their own width.

    Integer codes take `bits` each, scales 16 bits, zero points `bits` each (none when
    symmetric), the permutation of act order 32 bits per column. NF4 takes what bitsandbytes
    makes: 4 bits per weight and 32 per block; under double quantization 8 per block, 32 per 256
    blocks, the offset and the table of 256 values.
    This is the runtime-free count; an exporter's `stored_bytes` tells what its format occupies.
    """
    rows, columns = shape
    if spec is None:
        return rows * columns * FLOAT_BYTES[float_type]
    if spec.method == "nf4":
        return _nf4_bytes(rows * columns, spec)
    scales = rows * spec.groups(columns)
    bits = rows * columns * spec.bits + scales * 16
    if not spec.symmetric:
        bits += scales * spec.bits
    if spec.permutes(columns):
        bits += columns * 32
    return -(-bits // 8)


def _nf4_bytes(weights: int, spec: QuantSpec) -> int:
    blocks = -(-weights // spec.group_size)
    codes = -(-weights // 2)
    if not spec.double_quant:
        return codes + 4 * blocks
    return codes + blocks + 4 * -(-blocks // NF4_NESTED_BLOCK) + 4 + 4 * 256
