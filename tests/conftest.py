"""Settles the test process before torch is imported."""

from __future__ import annotations

from asvd_q.process import settle_process

settle_process()
