"""The plan: what becomes of every layer, as pure data.

Made by `asvd_q.search` or written by hand; read by the compression loop, by exporters
(`can_express`, `stored_bytes`) and by reports. Nothing in it refers to a live module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from asvd_q.spec import FLOAT_BYTES, FloatType, QuantSpec, store_bytes

__all__ = [
    "FLOAT_BYTES",
    "SLOTS",
    "FloatType",
    "Form",
    "LayerPlan",
    "Part",
    "Plan",
    "QuantSpec",
    "Role",
    "Slot",
    "VocabularyPart",
    "factor_parameters",
    "store_bytes",
    "vocabulary_part",
]

Form = Literal["dense", "factors", "correction"]
"""`dense`: W; `factors`: A·B in its place; `correction`: coarse codes of W with A·B beside them."""

Slot = Literal["weight", "A", "B"]
"""`weight`: W (out, in) of a dense layer, or the codes that A·B correct; `B`: (rank, in), applied
first; `A`: (out, rank)."""

SLOTS: dict[Form, tuple[Slot, ...]] = {
    "dense": ("weight",),
    "factors": ("B", "A"),
    "correction": ("weight", "B", "A"),
}
"""Of each form, in the order in which they are applied."""

Role = Literal["linear", "embedding"]
"""`linear`: the weight is multiplied with; `embedding`: its rows are looked up, one per token."""

Part = int | Literal["embedding"] | None
"""What is compressed and stored together: the embedding, a block by its index, and None for the
output head."""

VocabularyPart = Literal["embedding", "head", "tied"]
"""A matrix with a row per token; `tied` is one that is the embedding and the output head."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerPlan(_Frozen):
    """What becomes of one weight.

    Attributes:
        name: dotted module path in the model, the key of everything said about this layer.
        kind: last part of the name ("q_proj"), for patterns and tables.
        block: index of the transformer block; None for layers outside blocks (the head, the
            embedding).
        shape: (out, in); of an embedding (vocabulary, hidden), as it is stored.
        transposed: the source keeps the weight as (in, out), as GPT-2's Conv1D does; so does a
            checkpoint where the layer is left alone.
        subclass: class of the layer's module where it is one derived from torch's Linear or from
            Conv1D, such as "FalconLinear": packages that replace layers may pass over it.
        form: see `Form`.
        rank: of A and B; None when dense.
        quantization: per slot; None leaves that matrix in floating point.
        predicted_bytes: in the store's count (see `store_bytes`).
        reason: why the layer stays dense or in floating point.
        role: see `Role`.
        tied: of an embedding whose matrix the output head shares: name of the head's module. The
            plan then stands for both, and the matrix is stored once.
    """

    name: str
    kind: str
    block: int | None
    shape: tuple[int, int]
    transposed: bool = False
    subclass: str | None = None
    form: Form = "dense"
    rank: int | None = None
    quantization: dict[Slot, QuantSpec | None]
    predicted_bytes: int = 0
    reason: str | None = None
    role: Role = "linear"
    tied: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> LayerPlan:
        slots = set(SLOTS[self.form])
        if set(self.quantization) != slots:
            raise ValueError(f"{self.name}: a layer in form {self.form} has the slots {slots}")
        if (self.rank is None) != (self.form == "dense"):
            raise ValueError(f"{self.name}: factors and corrections have a rank, nothing else has")
        if self.form == "correction" and self.quantization["weight"] is None:
            raise ValueError(f"{self.name}: a weight that is not quantized needs no correction")
        if self.rank is not None and not 1 <= self.rank <= min(self.shape):
            raise ValueError(
                f"{self.name}: rank {self.rank} is outside 1 … {min(self.shape)}, "
                f"the smaller side of its shape {self.shape}"
            )
        return self

    @model_validator(mode="after")
    def _possible_embedding(self) -> LayerPlan:
        if self.role == "linear":
            if self.tied is not None:
                raise ValueError(f"{self.name}: only an embedding is tied to a head")
            return self
        if self.form != "dense" or self.block is not None or self.transposed:
            raise ValueError(f"{self.name}: an embedding lies outside the blocks, and stays dense")
        spec = self.quantization["weight"]
        if spec is not None and spec.method == "nf4":
            raise ValueError(
                f"{self.name}: an embedding's rows are looked up one by one, and blocks of nf4 "
                "reach over rows: use rtn"
            )
        if spec is not None and spec.method == "gptq" and self.tied is None:
            raise ValueError(
                f"{self.name}: gptq needs inputs that are multiplied, and an embedding that no "
                "output head shares has none: use rtn"
            )
        return self

    @property
    def part(self) -> Part:
        """What it is compressed and stored with."""
        return "embedding" if self.role == "embedding" else self.block

    @property
    def vocabulary(self) -> VocabularyPart | None:
        """Which matrix outside the blocks it is; None inside them."""
        return vocabulary_part(self.role, self.tied, self.block)

    @property
    def counts_for_ratio(self) -> bool:
        """Whether a kept ratio of the whole model is about this layer too."""
        return self.block is not None or self.form == "factors"

    def slot_shapes(self) -> dict[Slot, tuple[int, int]]:
        """Shape (out, in) of each matrix that is stored, in the order it is applied."""
        out_features, in_features = self.shape
        rank = self.rank or 0
        shapes: dict[Slot, tuple[int, int]] = {
            "weight": self.shape,
            "B": (rank, in_features),
            "A": (out_features, rank),
        }
        return {slot: shapes[slot] for slot in SLOTS[self.form]}

    @property
    def parameters(self) -> int:
        """Number of weights stored, the bias left out."""
        return sum(rows * columns for rows, columns in self.slot_shapes().values())

    @property
    def changed(self) -> bool:
        """Whether anything but a copy of the source weight is to be stored."""
        return self.form != "dense" or self.quantization["weight"] is not None


class Plan(_Frozen):
    """All layers that a recipe looks at, in model order.

    Attributes:
        float_type: the type in which everything that is not quantized is stored.
        layers: also those that stay as they are, each with its reason. Embedding and head are
            among them only where a recipe asks for it.
        other_bytes: tensors no layer plan covers (norms, biases, an untouched embedding or head),
            in `float_type`.
        one_factor: layers that read the same input and whose corrections have one B, where rank
            and settings are the same: groups of names. Empty where each has a B of its own.
    """

    version: Literal[1] = 1
    float_type: FloatType
    layers: tuple[LayerPlan, ...]
    other_bytes: int = 0
    one_factor: tuple[tuple[str, ...], ...] = ()

    def __iter__(self) -> Iterator[LayerPlan]:  # type: ignore[override]
        return iter(self.layers)

    def layer(self, name: str) -> LayerPlan:
        """The plan of one layer. Raises KeyError when there is none of that name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def with_layers(self, layers: Mapping[str, LayerPlan]) -> Plan:
        """The plan with some of its layers, by name, replaced."""
        found = tuple(layers.get(layer.name, layer) for layer in self.layers)
        return self.model_copy(update={"layers": found})

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every factorised layer: the `truncation_ranks` of a checkpoint."""
        return self._ranks("factors")

    @property
    def correction_ranks(self) -> dict[str, int]:
        """Rank of A·B beside the codes of every corrected layer."""
        return self._ranks("correction")

    def _ranks(self, form: Form) -> dict[str, int]:
        return {
            layer.name: layer.rank
            for layer in self.layers
            if layer.form == form and layer.rank is not None
        }

    def same_factors(self) -> dict[str, str]:
        """Corrected layer → the first one that has its B, for all but those that come first."""
        corrected = {layer.name: layer for layer in self.layers if layer.form == "correction"}
        found: dict[str, str] = {}
        for names in self.one_factor:
            first: list[LayerPlan] = []
            for layer in (corrected[name] for name in names if name in corrected):
                twin = next((other for other in first if _same_factor(other, layer)), None)
                if twin is None:
                    first.append(layer)
                else:
                    found[layer.name] = twin.name
        return found

    @property
    def weights(self) -> int:
        """Weights of the planned layers, as they are in the dense model."""
        return sum(layer.shape[0] * layer.shape[1] for layer in self.layers)

    @property
    def kept_ratio(self) -> float:
        """Parameters of the layers that factors are made of, after / before.

        An embedding or a head in codes keeps all of its own, and so is none of them.
        """
        found = [layer for layer in self.layers if layer.counts_for_ratio]
        before = sum(layer.shape[0] * layer.shape[1] for layer in found)
        return sum(layer.parameters for layer in found) / max(before, 1)

    @property
    def predicted_bytes(self) -> int:
        """Bytes of the whole model in the store's count."""
        return self.other_bytes + sum(layer.predicted_bytes for layer in self.layers)


def vocabulary_part(role: Role, tied: str | None, block: int | None) -> VocabularyPart | None:
    """Which matrix outside the blocks a weight is; None for one inside them."""
    if role == "embedding":
        return "embedding" if tied is None else "tied"
    return "head" if block is None else None


def _same_factor(one: LayerPlan, other: LayerPlan) -> bool:
    return one.rank == other.rank and one.quantization["B"] == other.quantization["B"]


def factor_parameters(shape: tuple[int, int], rank: int) -> int:
    """Parameters of A (out, rank) and B (rank, in) together."""
    return rank * (shape[0] + shape[1])
