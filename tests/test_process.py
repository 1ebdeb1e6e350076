"""Threads are limited for a block, in torch and in the runtimes that are opened in it."""

from __future__ import annotations

import torch

from asvd_q.process import limited_threads, thread_limit
from asvd_q_exporters.onnx.session import session_options


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with limited_threads(3):
        assert torch.get_num_threads() == thread_limit() == 3
        assert session_options().intra_op_num_threads == 3
        with limited_threads(None):
            assert thread_limit() == 3
    assert torch.get_num_threads() == before
    assert thread_limit() is None
    assert session_options().intra_op_num_threads == 0
