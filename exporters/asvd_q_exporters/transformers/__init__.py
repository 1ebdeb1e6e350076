"""Plain transformers checkpoints of the floating-point factors."""

from asvd_q_exporters.transformers.exporter import TransformersExporter, TransformersOptions

__all__ = ["TransformersExporter", "TransformersOptions"]
