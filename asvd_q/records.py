"""What happened to every layer: the one record that run, store, artefact and report share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from asvd_q.plan import FloatType, Form, LayerPlan, QuantSpec, Role, Slot

__all__ = ["ArtefactMetadata", "Footprint", "LayerRecord", "LayerSpectrum", "SourceIdentity"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerRecord(_Frozen):
    """One layer after compression.

    Attributes:
        name, kind, block, shape, transposed, subclass, role, tied, form, rank, quantization: as
            in `LayerPlan`.
        reason: why the layer stayed dense or in floating point, when it did.
        bytes_before: of the source weight in the store's float type, without bias.
        bytes_after: of the stored tensors, codes counted at their own width.
        errors: relative output error ‖(Ŵ − W) X‖ / ‖W X‖ after each stage ("decompose",
            "quantize"), from the Gram matrix of the layer's site. Where the recipe collects no
            statistics it is ‖Ŵ − W‖ / ‖W‖, and `error_basis` says "weight".
        notes: retries, a numerical rank below the planned one, and the like.
    """

    name: str
    kind: str
    block: int | None
    shape: tuple[int, int]
    transposed: bool = False
    subclass: str | None = None
    form: Form
    rank: int | None
    reason: str | None
    quantization: dict[Slot, QuantSpec | None]
    bytes_before: int
    bytes_after: int
    errors: dict[str, float]
    error_basis: Literal["output", "weight"] = "output"
    notes: tuple[str, ...] = ()
    role: Role = "linear"
    tied: str | None = None

    @property
    def kept_ratio(self) -> float:
        """Parameters after / before."""
        return self.as_plan().parameters / (self.shape[0] * self.shape[1])

    def slot_shapes(self) -> dict[Slot, tuple[int, int]]:
        """Shape (out, in) of each stored matrix, in the order it is applied."""
        return self.as_plan().slot_shapes()

    def as_plan(self) -> LayerPlan:
        """What was done, in the words of a plan: exporters judge a finished store with it."""
        return LayerPlan(
            name=self.name,
            kind=self.kind,
            block=self.block,
            shape=self.shape,
            transposed=self.transposed,
            subclass=self.subclass,
            form=self.form,
            rank=self.rank,
            quantization=self.quantization,
            predicted_bytes=self.bytes_after,
            reason=self.reason,
            role=self.role,
            tied=self.tied,
        )


class LayerSpectrum(_Frozen):
    """Singular values that one layer's factors were cut from, at a few ranks.

    Attributes:
        of: what was decomposed: the layer's weight, or what codes left of it for a correction.
        rank: where it was cut.
        count: number of singular values, the smaller side of the matrix.
        numerical_rank: of them above rounding noise.
        kept: share of Σ σ² up to the rank.
        ranks: counted from 1, ascending, logarithmically spaced up to the numerical rank; `rank`
            is among them where it is within that.
        values: σ at these ranks, relative to the largest.
    """

    of: Literal["weight", "residual"] = "weight"
    rank: int
    count: int
    numerical_rank: int
    kept: float
    ranks: tuple[int, ...]
    values: tuple[float, ...]


class SourceIdentity(_Frozen):
    """Which model a store was made from, without the path it happened to lie at.

    Attributes:
        name: hub name or folder name.
        model_type: of its config.
        weights_sha256: over the bytes of its weight files, in the order of their names.
        revision: of a hub model.
    """

    name: str
    model_type: str
    weights_sha256: str
    revision: str | None = None


class Footprint(_Frozen):
    """Bytes of an artefact on disk.

    Attributes:
        weights: of the files that hold tensors.
        folder: of all files but the model card.
    """

    weights: int
    folder: int


class ArtefactMetadata(_Frozen):
    """`asvd_q.json`: beside every artefact, and inside an ONNX model's `metadata_props`.

    It holds nothing that changes between two runs of one recipe: no time, no path.

    Attributes:
        version: of this schema.
        asvd_q: version of the package that wrote it.
        format: name of the exporter ("onnx", "gptq", "transformers"), "store" for a store.
        options: the exporter's options.
        store_key: identity of the store the artefact was written from.
        truncation_ranks, correction_ranks: rank of every layer in form factors, and in form
            correction.
    """

    version: Literal[1] = 1
    asvd_q: str
    format: str
    options: dict[str, str | int | float | bool | None] = {}
    source: SourceIdentity
    float_type: FloatType
    store_key: str
    truncation_ranks: dict[str, int]
    correction_ranks: dict[str, int] = {}
    layers: tuple[LayerRecord, ...]
