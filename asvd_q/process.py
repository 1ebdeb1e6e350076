"""How noisy packages are kept from the terminal, and how the process they run in is set up."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["limited_threads", "quiet", "settle_process", "thread_limit"]

_NOISY = ("torchao", "torch.utils._pytree", "torch.onnx", "onnxscript", "transformers", "optimum")

_THREADS: ContextVar[int | None] = ContextVar("threads", default=None)


def settle_process() -> None:
    """Quiet libraries that report nothing home, and threads that sleep while they wait.

    What a library must not impose on its host program: the command line, the benchmarks and the
    tests call it, before anything heavy is imported.

    OpenMP's threads spin by default. As soon as anything else runs on the machine, spinning
    makes the many small operations of a decomposition several times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (DeprecationWarning, FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep imported packages from writing to the terminal; errors still rise."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Have torch, and runtimes that are opened in the block, compute with so many threads.

    Args:
        count: None leaves it to them.
    """
    if count is None:
        yield
        return
    import torch

    before, token = torch.get_num_threads(), _THREADS.set(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _THREADS.reset(token)


def thread_limit() -> int | None:
    """Threads that a runtime opened now is to compute with; None for as many as it wants."""
    return _THREADS.get()
