"""Architectures that have no graph, found out in a run without values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asvd_q.artefact import WHOLE_MODEL, Refusal
from asvd_q.errors import ExportError
from asvd_q.plan import Plan
from asvd_q.quantization import TORCH_TYPES
from asvd_q_exporters.onnx.decoders import example_past
from asvd_q_exporters.onnx.graph import quiet
from asvd_q_exporters.onnx.skeleton import build_skeleton

if TYPE_CHECKING:
    from asvd_q.models import SourceModel
    from asvd_q_exporters.onnx.exporter import OnnxOptions

__all__ = ["refusal"]


def refusal(source: SourceModel, options: OnnxOptions) -> Refusal | None:
    """Why the model cannot be traced or its graph not run; None where that does not show."""
    with quiet():
        plan = Plan(float_type=options.dtype, layers=())
        skeleton = build_skeleton(plan, source, {}, options)
        try:
            example_past(skeleton.model, TORCH_TYPES[options.dtype])
        except ExportError as error:
            return Refusal(WHOLE_MODEL, str(error), "use the transformers format")
    return None
