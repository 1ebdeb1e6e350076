"""The command line: parse, call, print. Heavy packages are imported inside the commands."""

from asvd_q.cli import (  # noqa: F401 - each adds its commands to the application
    compare,
    evaluate,
    generate,
    inspect,
    latency,
    look_ahead,
    report,
    run,
    search,
    study,
)
from asvd_q.cli.app import app
from asvd_q.cli.program import main

__all__ = ["app", "main"]
