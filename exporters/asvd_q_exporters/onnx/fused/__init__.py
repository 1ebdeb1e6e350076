"""Graphs in ONNX Runtime's own operators for attention, rotary embeddings, and norms.

The model's own code still runs when the graph is traced. Only what transformers lets be replaced
is replaced, the function that attends, the masks, and the cache, and what is found to compute the
same as an operator when both are run on numbers: rotary embeddings and RMS norms.

attention.py  `GroupQueryAttention` in place of transformers' attention functions
mask.py       lengths and padding, as the operator wants them
cache.py      a cache that grows inside that operator
rotary.py     which rotary embeddings the operator applies itself
norms.py      RMS norms
passes.py     what is tidied in the traced graph
merge.py      products with the same input as one
"""

from asvd_q_exporters.onnx.fused.attention import FusedAttention, NotFusedError
from asvd_q_exporters.onnx.fused.norms import fuse_norms

__all__ = ["FusedAttention", "NotFusedError", "fuse_norms"]
