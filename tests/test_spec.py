"""Settings of one matrix: each method has its own, and nothing else is taken."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from asvd_q.methods import METHODS
from asvd_q.spec import QuantSpec, store_bytes


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_its_settings_and_no_others(method: str) -> None:
    spec = QuantSpec(method=method)
    assert spec.model_dump() == {"method": method, **METHODS[method].settings}
    for name in set(QuantSpec.model_fields) - {"method", *METHODS[method].settings}:
        owners = [other for other in METHODS if name in METHODS[other].settings]
        value = METHODS[owners[0]].settings[name]
        with pytest.raises(ValidationError, match=f"{name} is a setting of .*{owners[0]}"):
            QuantSpec.model_validate({"method": method, name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "gptq", "bits": 3, "act_order": True, "damping": 0.05, "clip": "mse"},
        {"method": "gptq", "backend": "gptqmodel", "static_groups": True},
        {"method": "nf4", "group_size": 4096, "double_quant": True},
    ],
)
def test_json_and_back(settings: dict[str, Any]) -> None:
    spec = QuantSpec.model_validate(settings)
    assert QuantSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "awq"}, "no method is called 'awq': use rtn or gptq or nf4"),
        ({"method": ["rtn"]}, "no method is called"),
        ({"method": "nf4", "bits": 3}, "bits 3 is not possible: NF4 has 4"),
        ({"method": "nf4", "group_size": 16}, "not possible for nf4: use one of 32, 64,"),
        ({"method": "nf4", "group_size": -1}, "not possible for nf4"),
        ({"method": "gptq", "group_size": 512}, "use -1 .* or a size from 16 to 256"),
        ({"method": "gptq", "damping": 0.0}, "greater than 0"),
        ({"method": "gptq", "damping": 1.0}, "less than 1"),
        ({"method": "gptq", "backend": "autogptq"}, "'native' or 'gptqmodel'"),
        ({"scale": 1}, "Extra inputs"),
    ],
)
def test_what_is_not_possible_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuantSpec.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "columns", "expected"),
    [
        ({}, 64, False),
        ({"act_order": True}, 64, True),
        ({"act_order": True}, 16, False),  # a single group: its order does not matter
        ({"act_order": True, "group_size": -1}, 64, False),
        ({"act_order": True, "static_groups": True}, 64, False),
        ({"static_groups": True}, 64, False),
    ],
)
def test_when_act_order_needs_a_permutation(
    settings: dict[str, Any], columns: int, expected: bool
) -> None:
    spec = QuantSpec.model_validate({"method": "gptq", "group_size": 16} | settings)
    assert spec.permutes(columns) is expected


@pytest.mark.parametrize(
    ("settings", "shape", "expected"),
    [
        # 64 · 64 codes of 4 bits are 2048 bytes; 64 blocks with a float32 each are 256.
        ({"method": "nf4"}, (64, 64), 2304),
        # 15 codes fill 8 bytes; one block.
        ({"method": "nf4"}, (3, 5), 12),
        # 2048 bytes, 64 of scales, one scale of scales, the offset, the table of 256 floats.
        ({"method": "nf4", "double_quant": True}, (64, 64), 2048 + 64 + 4 + 4 + 1024),
        # 512 · 256 codes; 4096 blocks of 32, in 16 blocks of 256.
        (
            {"method": "nf4", "double_quant": True, "group_size": 32},
            (512, 256),
            65536 + 4096 + 16 * 4 + 4 + 1024,
        ),
        # 10 · 100 codes of 4 bits, 10 · 4 scales, and 100 places of a permutation.
        ({"method": "gptq", "group_size": 32, "act_order": True}, (10, 100), 500 + 80 + 400),
        ({"method": "gptq", "group_size": 32}, (10, 100), 500 + 80),
    ],
)
def test_bytes_against_a_count_by_hand(
    settings: dict[str, Any], shape: tuple[int, int], expected: int
) -> None:
    assert store_bytes(shape, QuantSpec.model_validate(settings), "float32") == expected
