"""Keeps lm-eval off the terminal, and nothing of ours."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from asvd_q.process import quiet

__all__ = ["Silence"]

_ONE_PROCESS = "DISABLE_MULTIPROC"
"""What lm-eval looks at before it forks a process per core to resample a metric."""


class Silence:
    """Silence around lm-eval that is lifted while it calls a model of ours."""

    def __init__(self) -> None:
        self._output = sys.stdout
        self._errors = sys.stderr
        self._level = logging.root.manager.disable

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Nothing that is written or logged inside is seen, and no processes are forked."""
        before = os.environ.get(_ONE_PROCESS)
        os.environ[_ONE_PROCESS] = "1"
        try:
            with quiet():
                yield
        finally:
            if before is None:
                del os.environ[_ONE_PROCESS]
            else:
                os.environ[_ONE_PROCESS] = before

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """As it was outside: progress is shown, and log messages are written."""
        level = logging.root.manager.disable
        logging.disable(self._level)
        try:
            with redirect_stdout(self._output), redirect_stderr(self._errors):
                yield
        finally:
            logging.disable(level)
