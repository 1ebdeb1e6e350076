"""ONNX: one graph for ONNX Runtime that decodes token by token, its codes in operators for them.

exporter.py      the exporter: options, refusals, bytes; imports neither torch nor onnx
examine.py       architectures that have no graph, found out before any work
sizes.py         how many bytes the files will take

operators.py     which operator holds what a quantization method makes
nbits/           `MatMulNBits`: integer codes
bnb4/            `MatMulBnb4`: NF4
qdq/             `DequantizeLinear` and `MatMul`: integer codes in standard operators
gather/          `GatherBlockQuantized`: rows of an embedding in integer codes
codes.py         what every operator for integer codes asks of a matrix

skeleton.py      the model to trace: its architecture with stand-ins and no weights
layers.py        modules that stand in for linear layers while the model is traced
placeholders.py  their parameters, which occupy no memory
sharing.py       corrections whose B is the same, which the file holds once
decoders.py      the model as a function of tokens and cache, and how it can attend
fused/           attention, rotary embeddings, norms and products in fewer nodes
graph.py         the traced graph, without weights

write.py         the whole artefact
keys.py          what the model file says of itself
tensors.py       the weights, read from store and source as the file is written
save.py          the file, one tensor in memory at a time
genai.py         what ONNX Runtime GenAI wants to be told of it

runner.py        the artefact in ONNX Runtime
buffers.py       keys and values that it writes in place
session.py       how its sessions are set up
nodes.py         the node that a matrix becomes, in numbers
timing.py        how long such nodes take on this machine
unpack.py        reads the weights back; shares no code with the rest
"""

from asvd_q_exporters.onnx.exporter import OnnxExporter, OnnxOptions

__all__ = ["OnnxExporter", "OnnxOptions"]
