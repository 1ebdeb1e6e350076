"""Memory is read of the process that is measured."""

from __future__ import annotations

import pytest

from asvd_q.errors import ResourceError
from asvd_q.evaluation.memory import resident_memory, run_apart


def test_a_peak_stays_when_the_memory_is_given_back() -> None:
    before = resident_memory()
    assert before.now <= before.peak
    block = b"x" * (before.peak - before.now + 2**25)
    held = resident_memory()
    assert held.now - before.now > 2**24
    size = len(block)
    del block
    after = resident_memory()
    assert after.peak >= before.now + size - 2**22


def test_another_process_says_what_it_found() -> None:
    assert run_apart("json.tool", "--compact", given='{"a": [1,  2]}') == {"a": [1, 2]}
    with pytest.raises(ResourceError, match=r"--compact cannot be measured .*: Expecting value"):
        run_apart("json.tool", "--compact", given="[")
