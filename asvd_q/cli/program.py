"""The program: what a person can act on ends with one line and exit code 2."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from asvd_q.cli.app import app
from asvd_q.errors import AsvdQError

__all__ = ["main"]

_INTERRUPTED = 130

_NO_MEMORY = (
    "there is not enough memory: keep hidden states on disk (calibration.hidden_states: disk) "
    "or lower calibration.batch_size"
)


def main() -> NoReturn:
    """Run the command line; what a person can act on ends with one line and exit code 2."""
    from asvd_q.process import settle_process

    settle_process()
    try:
        app()
    except AsvdQError as error:
        _fail(str(error), 2)
    except MemoryError:
        _fail(_NO_MEMORY, 2)
    except RuntimeError as error:
        # torch has an error of its own for a GPU's memory, and none for the machine's.
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        _fail(_NO_MEMORY, 2)
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # what typer makes of Ctrl-C
            _fail(
                "interrupted; the same command goes on from the last finished block or point",
                _INTERRUPTED,
            )
        raise
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)
