"""The block-major loop that carries out a plan."""

from asvd_q.compression.layer import compress_layer
from asvd_q.compression.loop import Calibration, check_weights, compress

__all__ = ["Calibration", "check_weights", "compress", "compress_layer"]
