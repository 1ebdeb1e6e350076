"""Settings of a process of our own: what a library must not impose on its host program.

Called by the command line, the benchmarks and the tests before anything heavy is imported.
"""

from __future__ import annotations

import logging
import os
import warnings

__all__ = ["settle_process"]

_NOISY = ("torchao", "torch.utils._pytree", "torch.onnx", "onnxscript", "transformers", "optimum")


def settle_process() -> None:
    """Quiet libraries, and threads that sleep while they wait.

    OpenMP's threads spin by default. As soon as anything else runs on the machine, spinning
    makes the many small operations of a decomposition several times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (DeprecationWarning, FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category)
