"""The ONNX exporter. Heavy modules are imported where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asvd_q.artefact import WHOLE_MODEL, ParityBounds, Refusal
from asvd_q.plan import FLOAT_BYTES
from asvd_q.usage import Usage
from asvd_q_exporters.onnx.gather.operator import embedding_refusal
from asvd_q_exporters.onnx.nodes import float_node
from asvd_q_exporters.onnx.operators import OperatorSet, operators_of
from asvd_q_exporters.onnx.qdq.layout import LEAST_OPSET

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.artefact import ArtefactBytes
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, LayerPlan, Plan, QuantSpec, Slot
    from asvd_q.store import Store
    from asvd_q_exporters.onnx.nodes import MatrixNode
    from asvd_q_exporters.onnx.runner import OnnxRunner

__all__ = ["OnnxExporter", "OnnxOptions"]

_LARGEST = 2**28
"""Weights of a matrix that is timed whole: one gibibyte in float32."""


class OnnxOptions(BaseModel):
    """Options of the ONNX format.

    Attributes:
        dtype: of activations, scales, float matrices, and the key-value cache; the scales of NF4
            are float32 always.
        operators: `contrib` has ONNX Runtime's own among them; `standard` has those of ONNX
            alone, for other runtimes: codes in `DequantizeLinear`, 4 or 8 bits wide, and no NF4.
        accuracy_level: of `MatMulNBits`. 4 multiplies with activations rounded to int8; 0 and 1
            compute in float32, where 2 and 8 bits are slower by two orders of magnitude. With
            standard operators it is not in the graph: it is what sessions opened here are set to.
        opset: of the standard operators.
        external_data: weights in `model.onnx_data` beside the graph; `auto` does so above
            64 MiB, because what lies in the graph is in memory twice while it is loaded (and a
            protobuf file ends at 2 GB). There an embedding's rows are read from the mapped file;
            in the graph its codes are loaded, and those of one that is tied to the head a second
            time in the head's layout.
        merge_products: whole matrices of codes that read the same input, gate and up above all,
            become one product whose rows are split: fewer starts of threads for each token, and
            more memory for a prompt, whose results are held twice. What costs no memory is always
            merged: queries, keys and values that attention reads as they are, and factors B.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float32", "float16"] = "float32"
    operators: OperatorSet = "contrib"
    accuracy_level: Literal[0, 1, 4] = 4
    opset: int = Field(default=21, ge=18, le=23)
    external_data: Literal["auto"] | bool = "auto"
    merge_products: bool = False

    @model_validator(mode="after")
    def _merges_in_graphs_of_its_own(self) -> Self:
        if self.merge_products and self.operators == "standard":
            raise ValueError("merge_products is of operators: contrib alone; leave one of them out")
        return self

    @property
    def fused(self) -> bool:
        """Whether ONNX Runtime's operators for more than one step at a time may be used."""
        return self.operators == "contrib"

    @property
    def session_level(self) -> int | None:
        """The accuracy level that a session has to be set to; None where the graph says it."""
        return self.accuracy_level if self.operators == "standard" else None


class OnnxExporter:
    """Writes a store as `model.onnx` in the layout that optimum gives to causal models.

    Inputs are `input_ids`, `attention_mask`, `position_ids` where the graph reads positions, and
    `past_key_values.%d.key/value`, outputs `logits` and `present.%d.key/value`; batch and sequence
    are dynamic, and a past of length zero is a prefill.
    """

    name: ClassVar[str] = "onnx"
    options_model: ClassVar[type[BaseModel]] = OnnxOptions

    def __init__(self, options: BaseModel | None = None) -> None:
        chosen = OnnxOptions() if options is None else options
        if not isinstance(chosen, OnnxOptions):
            raise TypeError(f"options of the onnx format are OnnxOptions, not {type(chosen)}")
        self.options = chosen
        self._operators = operators_of(chosen.operators)
        self.bounds = _bounds(chosen.dtype, rounds=chosen.accuracy_level == 4)
        self.float_type: FloatType | None = chosen.dtype

    def can_express(self, plan: Plan) -> list[Refusal]:
        """Methods without an operator, what each operator cannot hold, and an old opset."""
        matrices = [
            (layer, shape, spec)
            for layer in plan
            for slot, shape in layer.slot_shapes().items()
            if (spec := layer.quantization[slot]) is not None
        ]
        found = [self._refusal(*matrix) for matrix in matrices]
        opset = self.options.opset
        if matrices and self.options.operators == "standard" and opset < LEAST_OPSET:
            found.insert(
                0,
                Refusal(
                    WHOLE_MODEL,
                    f"DequantizeLinear has no blocks in opset {opset}",
                    f"set opset: {LEAST_OPSET} or above, or operators: contrib",
                ),
            )
        return [refusal for refusal in found if refusal is not None]

    def stored_bytes(self, layer: LayerPlan) -> int:
        """Bytes of the layer's initializers, without bias.

        A B that several corrections have in common counts in each of them, though the file
        holds it once: a layer alone does not tell.
        """
        dtype = self.options.dtype
        total = 0
        for slot, shape in layer.slot_shapes().items():
            spec = layer.quantization[slot]
            if spec is None:
                total += shape[0] * shape[1] * FLOAT_BYTES[dtype]
            else:
                total += self._operators[spec.method].stored_bytes(shape, spec, dtype)
        return total

    def artefact_bytes(self, plan: Plan, source: SourceModel) -> ArtefactBytes:
        """See `asvd_q.artefact.SizedExporter`; of the graph, nodes are estimated."""
        from asvd_q_exporters.onnx.sizes import artefact_bytes

        return artefact_bytes(plan, source, self.options)

    def refusal_of(self, source: SourceModel) -> Refusal | None:
        """See `asvd_q.artefact.ExaminingExporter`: the model is run once without values.

        What the tracer itself stumbles over shows when the graph is made.
        """
        from asvd_q_exporters.onnx.examine import refusal

        return refusal(source, self.options)

    def bounds_of(self, plan: Plan) -> ParityBounds:
        """See `asvd_q.artefact.BoundedExporter`: activations are rounded for codes alone.

        Rows of an embedding are looked up, and no activation enters.
        """
        multiplied = (layer for layer in plan if layer.vocabulary != "embedding")
        specs = (spec for layer in multiplied for spec in layer.quantization.values())
        levels = any(spec is not None and self._operators[spec.method].has_levels for spec in specs)
        return _bounds(self.options.dtype, rounds=levels and self.options.accuracy_level == 4)

    def write(self, store: Store, folder: Path) -> None:
        """Write `model.onnx`, `config.json`, `genai_config.json` and the tokenizer's files.

        One weight is in memory at a time: the graph is traced over placeholders.

        Raises:
            ExportError: naming the layer that the format or the tracer cannot hold.
        """
        from asvd_q_exporters.onnx.write import write_artefact

        write_artefact(store, folder, self.options)

    def open(self, folder: Path) -> OnnxRunner:
        """The artefact in ONNX Runtime, on the CPU.

        Raises:
            ArtefactError: no model there, or a damaged one.
        """
        from asvd_q_exporters.onnx.runner import OnnxRunner

        return OnnxRunner(folder)

    @property
    def runtime(self) -> str:
        """See `asvd_q.artefact.TimedExporter`."""
        return f"onnxruntime {version('onnxruntime')} CPU"

    def kernel(self, shape: tuple[int, int], spec: QuantSpec | None) -> str:
        """See `asvd_q.artefact.TimedExporter`."""
        return str(self._node(shape, spec))

    def decode_seconds(
        self, matrices: Sequence[tuple[tuple[int, int], QuantSpec | None]]
    ) -> list[float]:
        """See `asvd_q.artefact.TimedExporter`.

        In a graph of such matrices, so that weights come from where they do in a model's graph. Of
        matrices that no protobuf file could hold, such as a large vocabulary's, some rows are
        measured.
        """
        from asvd_q_exporters.onnx.timing import node_seconds

        rows = [min(shape[0], max(_LARGEST // shape[1], 1)) for shape, _ in matrices]
        nodes = [
            self._node((count, shape[1]), spec)
            for count, (shape, spec) in zip(rows, matrices, strict=True)
        ]
        distinct = list(dict.fromkeys(nodes))
        seconds = node_seconds(distinct, self.options.dtype, self.options.opset)
        found = dict(zip(distinct, seconds, strict=True))
        return [
            found[node] * shape[0] / count
            for node, count, (shape, _) in zip(nodes, rows, matrices, strict=True)
        ]

    def _node(self, shape: tuple[int, int], spec: QuantSpec | None) -> MatrixNode:
        options = self.options
        if spec is None:
            return float_node(shape, options.dtype)
        return self._operators[spec.method].node(shape, spec, options.dtype, options.accuracy_level)

    def usage(self, folder: Path) -> Usage:
        """See `asvd_q.usage.DescribedExporter`."""
        from asvd_q_exporters.onnx.loading import usage

        return usage(folder, self.options)

    def read(self, folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
        """The matrices in `model.onnx`, read with numpy and the ONNX protobuf alone.

        Raises:
            ArtefactError: the file is damaged, or a matrix is missing.
        """
        from asvd_q_exporters.onnx.unpack import read_layers

        yield from read_layers(folder)

    def _refusal(self, layer: LayerPlan, shape: tuple[int, int], spec: QuantSpec) -> Refusal | None:
        if layer.role == "embedding":
            if self.options.operators == "contrib":
                return embedding_refusal(layer, spec)
            return Refusal(
                layer.name,
                "no standard operator looks up rows of codes",
                "leave the embedding in floating point, or set operators: contrib",
            )
        operator = self._operators.get(spec.method)
        if operator is None:
            return Refusal(
                layer.name,
                f"none of the {self.options.operators} operators holds what {spec.method} makes",
                f"quantize it with {' or '.join(self._operators)}, or set operators: contrib",
            )
        return operator.refusal(layer.name, shape, spec)


def _bounds(dtype: FloatType, *, rounds: bool) -> ParityBounds:
    """Measured on the small real model that the tests carry, 229 tokens, and on random ones.

    Level 0 or 1 in float32 agrees to 7e-7 (KL 3e-12) whatever the bits, so its bounds leave room
    for deeper models only. In float16 5e-4 (KL 2e-6). Level 4 rounds activations to int8, in
    blocks as wide as the scales': 0.7e-2 at block 32 to 1.3e-2 at one scale per row (KL 2e-4 to
    8e-4, agreement 0.965 and more), and 3.4e-2 on random weights. Float matrices are as exact at
    every level, and so is NF4, which is computed in float32.

    Args:
        dtype: of activations.
        rounds: some are rounded to int8, as level 4 does for codes of `MatMulNBits`.
    """
    if rounds:
        return ParityBounds(relative_error=5e-2, kl=1e-2, agreement=0.93)
    if dtype == "float16":
        return ParityBounds(relative_error=1e-2, kl=1e-4, agreement=0.98)
    return ParityBounds(relative_error=1e-3, kl=1e-5, agreement=0.999)
