"""The configuration of a PEFT adapter that is a store's corrections.

Source: PEFT, `LoraConfig` and `get_pattern_key`. Its lora_A is applied first, and is our B.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["adapter_config"]


def adapter_config(ranks: Mapping[str, int], base: str) -> dict[str, Any]:
    """Content of `adapter_config.json`.

    PEFT multiplies by alpha / r, so alpha is r everywhere. The most frequent rank is the default.
    PEFT takes the names of other ranks for regular expressions that may begin after any dot:
    each is escaped, and tied to the beginning of the name.

    Args:
        ranks: of every corrected layer, by its name in the causal language model.
        base: where the base checkpoint lies, seen from the adapter.
    """
    common = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": list(ranks),
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
