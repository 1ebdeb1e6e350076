"""The command line: parse, call, print. Heavy packages are imported inside the commands."""

# Each adds its commands to the application, and the help has them in this order.
from asvd_q.cli import look_ahead, run, search  # noqa: F401

# isort: split
from asvd_q.cli import evaluate, generate, latency, study  # noqa: F401

# isort: split
from asvd_q.cli import compare, inspect, report  # noqa: F401
from asvd_q.cli.app import app
from asvd_q.cli.program import main

__all__ = ["app", "main"]
