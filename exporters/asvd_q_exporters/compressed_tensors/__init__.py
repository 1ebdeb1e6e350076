"""Checkpoints in the compressed-tensors format, for transformers with compressed-tensors.

exporter.py   the exporter: options, refusals, bytes; imports neither torch nor the library
refusals.py   what the format or its loader cannot hold
layout.py     shapes and sizes
config.py     which module is quantized how
pack.py       codes into words
format.py     what is written of a matrix, and into the configuration
runner.py     a checkpoint in transformers
unpack.py     reads the matrices back with numpy alone
"""

from asvd_q_exporters.compressed_tensors.exporter import (
    CompressedTensorsExporter,
    CompressedTensorsOptions,
)

__all__ = ["CompressedTensorsExporter", "CompressedTensorsOptions"]
