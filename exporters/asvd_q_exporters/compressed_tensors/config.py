"""Which module is quantized how: the `quantization_config` of a checkpoint.

Source: compressed-tensors, `QuantizationConfig` and `match_named_modules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from asvd_q.models.skeleton import build_skeleton
from asvd_q_exporters._checkpoint import MODULES
from asvd_q_exporters.compressed_tensors.layout import group_width

if TYPE_CHECKING:
    from asvd_q.models import SourceModel
    from asvd_q.plan import Plan, QuantSpec

__all__ = ["patterns", "quantization_config"]


def quantization_config(plan: Plan, source: SourceModel) -> dict[str, Any]:
    """Content of `quantization_config` in `config.json`.

    Modules of one width and group size make a group. A single group is said to be all linear
    layers but those listed under `ignore`, as every loader of the format expects; several groups
    name their modules.
    """
    model = build_skeleton(source).model
    prefix = str(model.base_model_prefix)
    groups: dict[tuple[int, int | None], list[str]] = {}
    ignore: list[str] = []
    for name, (_, columns), spec in _linear_modules(plan, model):
        if spec is None:
            ignore.append(name)
            continue
        width = group_width(columns, spec)
        whole = width == columns != spec.group_size
        groups.setdefault((spec.bits, None if whole else width), []).append(name)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{index}": {
                "targets": ["Linear"] if len(groups) == 1 else patterns(names, prefix),
                "weights": _weights(bits, width),
                "input_activations": None,
                "output_activations": None,
            }
            for index, ((bits, width), names) in enumerate(groups.items())
        },
        "ignore": patterns(ignore, prefix),
        "kv_cache_scheme": None,
    }


def patterns(names: Iterable[str], prefix: str) -> list[str]:
    """Targets that fit modules of these names, with or without the head around the base model.

    All modules of the base model share one expression: libraries try every target on every
    module, and Python forgets compiled expressions beyond a few hundred.

    Args:
        prefix: what the names of the base model's modules begin with in the causal language model.
    """
    inside: list[str] = []
    outside: list[str] = []
    for name in names:
        short = name.removeprefix(f"{prefix}.")
        (outside if short == name else inside).append(short)
    if not inside:
        return outside
    choice = "|".join(map(re.escape, inside))
    return [*outside, f"re:(?:{re.escape(prefix)}\\.)?(?:{choice})$"]


def _weights(bits: int, width: int | None) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if width is None else "group",
        "group_size": width,
        "dynamic": False,
    }


def _linear_modules(
    plan: Plan, model: nn.Module
) -> Iterator[tuple[str, tuple[int, int], QuantSpec | None]]:
    """Name, shape (out, in) and quantization of every linear module of a checkpoint.

    Args:
        model: of the source.
    """
    layers = {layer.name: layer for layer in plan}
    for name, module in model.named_modules():
        if name in layers:
            layer = layers[name]
            for slot, shape in layer.slot_shapes().items():
                yield name + MODULES[slot], shape, layer.quantization[slot]
        elif isinstance(module, nn.Linear):
            yield name, (module.out_features, module.in_features), None
