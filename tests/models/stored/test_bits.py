"""Unpacking against numbers written out as the stream of bits that they are."""

from __future__ import annotations

import pytest
import torch

from asvd_q.models.stored.bits import unpack_bits, words_for


@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_come_back(bits: int, count: int) -> None:
    numbers = torch.randint(0, 1 << bits, (count, 5), generator=torch.Generator().manual_seed(bits))
    columns = []
    for column in numbers.T.tolist():
        stream = sum(value << (bits * index) for index, value in enumerate(column))
        words = [stream >> (32 * index) & 0xFFFFFFFF for index in range(words_for(count, bits))]
        columns.append([word - (1 << 32) if word >> 31 else word for word in words])
    packed = torch.tensor(columns, dtype=torch.int32).T
    found = unpack_bits(packed, bits, count)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), numbers)
