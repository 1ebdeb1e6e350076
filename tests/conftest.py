"""Settles the test process before torch is imported."""

from __future__ import annotations

import os

from asvd_q.process import settle_process

if "PYTEST_XDIST_WORKER" in os.environ:  # beside others, each process has one core
    os.environ["OMP_NUM_THREADS"] = "1"
settle_process()
