"""How a script ends that has measured everything, and whose claim does not hold."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["CLAIM_FAILED", "end_claim_failed"]

CLAIM_FAILED = 3
"""The status: neither Python's own after an error, 1, nor 2, for what could not be run."""


def end_claim_failed(reason: str) -> NoReturn:
    """End the script; its numbers are written before."""
    print(reason, file=sys.stderr)
    sys.exit(CLAIM_FAILED)
