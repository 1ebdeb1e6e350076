"""Rules for modules that differ, as gptqmodel itself applies them."""

from __future__ import annotations

from asvd_q_exporters._runner import quiet
from asvd_q_exporters.gptq.rules import dynamic_rules
from asvd_q_exporters.gptq.settings import Setting, common

MOST = Setting(4, 128, True)


def test_gptqmodel_finds_every_setting_again() -> None:
    """On names that are ends, beginnings or near misses of one another."""
    with quiet():
        from gptqmodel.quantization.config import dynamic_get

    settings = {
        "model.layers.1.mlp.up_proj": MOST,
        "model.layers.11.mlp.up_proj": Setting(8, 128, True),
        "model.layers.1.mlp_up_proj": Setting(3, -1, False),
        "model.layers.1.mlp.up_proj.BLinear": Setting(4, 32, True),
        "model.layers.1.mlp.up_proj.ALinear": MOST,
        "layers.1.mlp.up_proj": Setting(2, 64, False),
        "model.layers.1.mlp.up-proj": Setting(4, 128, False),
        "model.layers.1.mlp.up": MOST,
        "modelXlayers.1.mlp.up_proj": MOST,
    }
    floats = ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.gate"]
    rules = dynamic_rules(settings, MOST, floats)
    assert len(rules) == 5 + 2
    for name, setting in settings.items():
        found = [
            dynamic_get(rules, name, key, default)
            for key, default in zip(("bits", "group_size", "sym"), MOST, strict=True)
        ]
        assert Setting(*found) == setting, name
    for name in floats:
        assert dynamic_get(rules, name) is False
    assert dynamic_get(rules, "model.layers.1.mlp.gate_proj2") is None


def test_a_rule_says_no_more_than_what_differs() -> None:
    rules = dynamic_rules({"a.b": Setting(8, 128, True), "a.c": MOST}, MOST, [])
    assert rules == {"+:^a\\.b$": {"bits": 8}}
    assert dynamic_rules({"a.c": MOST}, MOST, []) == {}


def test_the_default_is_the_most_frequent_setting() -> None:
    other = Setting(8, 128, True)
    assert common({"a": other, "b": MOST, "c": MOST}) == MOST
    assert common({"a": other, "b": MOST}) == other
    assert common({}) is None
