"""`com.microsoft::MatMulBnb4`: NF4 in the bytes that bitsandbytes made.

operator.py   what it can hold, and the way to the rest
layout.py     how a matrix lies in it
linear.py     the module that stands in for it while the model is traced
pack.py       a stored NF4 weight to its tensors
unpack.py     its tensors to the matrix; shares no code with the rest
"""
