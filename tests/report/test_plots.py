"""To which part of a model a layer belongs."""

from __future__ import annotations

import pytest

from asvd_q.report.plots import ATTENTION, MLP, OTHER, part_of


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.0.self_attn.q_proj", ATTENTION),
        ("transformer.h.0.attn.c_proj", ATTENTION),
        ("transformer.h.0.self_attention.query_key_value", ATTENTION),
        ("bert.encoder.layer.0.attention.output.dense", ATTENTION),
        ("model.layers.0.mlp.down_proj", MLP),
        ("transformer.h.0.mlp.c_proj", MLP),
        ("model.decoder.layers.0.fc1", MLP),
        ("lm_head", OTHER),
    ],
)
def test_parts_of_models(name: str, part: str) -> None:
    assert part_of(name) == part
