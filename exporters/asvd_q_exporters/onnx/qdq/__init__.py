"""`DequantizeLinear` before `MatMul`: integer codes in ONNX's standard operators alone.

operator.py   what it can hold, and the way to the rest
layout.py     how a matrix lies in it: types, blocks, bytes
linear.py     the module that stands in for it while the model is traced
pack.py       store codes to its tensors
unpack.py     its tensors to the matrix; shares no code with the rest
"""
