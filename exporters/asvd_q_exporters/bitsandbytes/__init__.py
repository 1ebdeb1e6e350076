"""NF4 checkpoints for transformers with bitsandbytes."""

from asvd_q_exporters.bitsandbytes.exporter import BitsAndBytesExporter, BitsAndBytesOptions

__all__ = ["BitsAndBytesExporter", "BitsAndBytesOptions"]
