"""GPTQ-format checkpoints for transformers with gptqmodel."""

from asvd_q_exporters.gptq.exporter import GptqExporter, GptqOptions

__all__ = ["GptqExporter", "GptqOptions"]
