"""The block-major loop that carries out a plan."""

from asvd_q.compression.layer import compress_layer
from asvd_q.compression.loop import Calibration, check_weights, compress
from asvd_q.compression.spectra import SPECTRA_FILE, SpectraFile, read_spectra

__all__ = [
    "SPECTRA_FILE",
    "Calibration",
    "SpectraFile",
    "check_weights",
    "compress",
    "compress_layer",
    "read_spectra",
]
