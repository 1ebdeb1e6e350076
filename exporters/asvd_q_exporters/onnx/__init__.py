"""ONNX: one graph for ONNX Runtime that decodes token by token, its codes in `MatMulNBits`.

exporter.py   the exporter: options, refusals, bytes; imports neither torch nor onnx
layout.py     how a quantized matrix lies in `MatMulNBits`: bits, blocks, bytes
layers.py     modules that stand in for linear layers while the model is traced
graph.py      the traced graph, without weights
tensors.py    the weights, read from store and source as the file is written
pack.py       store codes to `MatMulNBits` tensors
save.py       the file, one tensor in memory at a time
runner.py     the artefact in ONNX Runtime
unpack.py     reads the weights back; shares no code with the rest
"""

from asvd_q_exporters.onnx.exporter import OnnxExporter, OnnxOptions

__all__ = ["OnnxExporter", "OnnxOptions"]
