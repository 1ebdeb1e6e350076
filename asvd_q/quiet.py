"""Keeps the libraries' own chatter away from our users' terminals.

Called by the command line before anything heavy is imported; a library should not do this to
its host program, so nothing else calls it.
"""

from __future__ import annotations

import logging
import os
import warnings

__all__ = ["quiet_libraries"]

_NOISY = ("torchao", "torch.utils._pytree", "torch.onnx", "onnxscript", "transformers", "optimum")


def quiet_libraries() -> None:
    """Only errors from the libraries below us; our own warnings stay."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (DeprecationWarning, FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category)
