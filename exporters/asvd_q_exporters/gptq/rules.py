"""GPTQModel's rules for modules that differ from the rest: `dynamic` in its configuration.

A rule is a regular expression, and what it changes for the modules whose names it matches from
their beginning; of several that match, the first counts. `-:` in front of it leaves them alone.
Where all rules are whole names between ^ and $, GPTQModel looks them up instead of trying each.

Source: gptqmodel 7.6.0, `quantization/config.py`, `_resolve_dynamic_override`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asvd_q_exporters.gptq.settings import Setting

__all__ = ["dynamic_rules"]


def dynamic_rules(
    settings: Mapping[str, Setting], default: Setting, floats: Iterable[str]
) -> dict[str, dict[str, int | bool]]:
    """A rule for every module that `default` does not describe.

    Args:
        settings: of every quantized module.
        floats: modules whose weights stay in floating point. Without a rule GPTQModel looks for
            codes of those that it would quantize itself, and refuses the checkpoint.
    """
    rules: dict[str, dict[str, int | bool]] = {
        f"+:{_exactly(module)}": _differences(setting, default)
        for module, setting in settings.items()
        if setting != default
    }
    return rules | {f"-:{_exactly(module)}": {} for module in floats}


def _exactly(module: str) -> str:
    return f"^{re.escape(module)}$"


def _differences(setting: Setting, default: Setting) -> dict[str, int | bool]:
    keys = {"bits": "bits", "group_size": "group_size", "sym": "symmetric"}
    return {
        key: getattr(setting, field)
        for key, field in keys.items()
        if getattr(setting, field) != getattr(default, field)
    }
