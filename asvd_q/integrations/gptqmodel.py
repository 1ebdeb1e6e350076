"""Lets GPTQModel load our checkpoints, and quantize the factors in them.

    import asvd_q.integrations.gptqmodel
    from gptqmodel import GPTQModel

After that `GPTQModel.load(folder)` runs a GPTQ-format checkpoint of ours, and
`GPTQModel.load(folder, QuantizeConfig(…)).quantize(texts)` quantizes one of floating-point
factors. It also registers what `asvd_q.integrations.transformers` does.

A definition of GPTQModel's names the layers of a block in the order in which they run. Ours has
three names where its own has one: the layer, for where it is dense, its `BLinear` in the same
step, and its `ALinear` in a step after that, so that A is quantized for what the quantized B
gives it.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from asvd_q.errors import ModelError
from asvd_q.integrations import transformers as ours
from asvd_q.models.modeling_asvd_q import CorrectedLinear, base_type
from asvd_q.process import quiet

# Its pool for loading wants two workers, which it does not get by itself on two cores or one.
if (os.cpu_count() or 1) < 3:
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

with quiet():
    from gptqmodel.models.auto import MODEL_MAP, SUPPORTED_MODELS

__all__ = ["register", "with_factors"]

_TREES: dict[str, list[Any]] = {
    # GPTQModel's own splits gate_up_proj into two layers, which factors of it have no use for.
    "phi3": [
        "model",
        "layers",
        "#",
        {
            "input_layernorm": ("input_layernorm:!",),
            "self_attn": ("qkv_proj:0", "o_proj:1"),
            "post_attention_layernorm": ("post_attention_layernorm:!",),
            "mlp": ("gate_up_proj:0", "down_proj:1"),
        },
    ],
}
"""Layers of architectures whose definition in GPTQModel does not fit, as its `module_tree`."""


def register(model_type: str) -> str:
    """Let GPTQModel load factorised checkpoints of one more architecture, which it must know.

    Args:
        model_type: as transformers calls it ("llama"), or as our checkpoints do
            ("asvd_q_llama").

    Returns:
        What our checkpoints call it.

    Raises:
        ModelError: transformers or GPTQModel has no model of that type.
    """
    registered = ours.register(model_type)
    name = base_type(model_type)
    if name not in MODEL_MAP:
        raise ModelError(f"model_type: GPTQModel has no definition of {name!r} to build on")
    if registered not in MODEL_MAP:
        base = MODEL_MAP[name]
        MODEL_MAP[registered] = _definition(base, _TREES.get(name, base.module_tree))
        SUPPORTED_MODELS.append(registered)
    return registered


def with_factors(tree: Any) -> Any:
    """A `module_tree` of GPTQModel's with `BLinear` and `ALinear` beside every layer.

    Its steps are numbered: a layer and its B keep their step, with room after each step for the
    A's of its layers. Layers that are not quantized ("!", "?") have no factors either.
    """
    if isinstance(tree, dict):
        return {
            _spread(parent): _entries(entries, parent.partition(":")[0])
            for parent, entries in tree.items()
        }
    return [with_factors(part) if isinstance(part, dict | list) else part for part in tree]


def _entries(entries: Any, parent: str) -> Any:
    """What stands under the name of one module: its layers, or modules in it."""
    if isinstance(entries, dict):
        return with_factors(entries)
    made: list[str] = []
    for entry in entries:
        name, _, flags = entry.partition(":")
        made.append(_spread(entry))
        if {"!", "?"} & set(flags.split(":")):
            continue
        step = next((int(flag) for flag in flags.split(":") if flag.isdigit()), 0)
        # A module that is itself the layer stands under its own name.
        dot = "" if name == parent else f"{name}."
        made += [f"{dot}BLinear:{2 * step}", f"{dot}ALinear:{2 * step + 1}"]
    return tuple(made)


def _spread(token: str) -> str:
    """A name with its flags; the number of its step is doubled."""
    name, *flags = token.split(":")
    # What shares its input is declared for layers that are there, which ours may not be.
    kept = (flag for flag in flags if not flag.startswith("in="))
    return ":".join([name, *(str(2 * int(flag)) if flag.isdigit() else flag for flag in kept)])


def _definition(base: type[Any], tree: list[Any]) -> type[Any]:
    """A definition like `base`, of models some of whose layers are factors."""

    class FactorisedQModel(base):  # type: ignore[misc]
        module_tree = with_factors(tree)
        layer_modules_strict = False  # of a layer and its factors, a block has one or the other

        def after_model_load(self, model: nn.Module, load_quantized_model: bool) -> Any:
            corrected = (
                name
                for name, module in model.named_modules()
                if isinstance(module, CorrectedLinear)
            )
            if self.quantize_config is not None and (found := next(corrected, None)):
                raise ModelError(
                    f"{found}: GPTQModel has no place for a correction beside a quantized weight"
                )
            return super().after_model_load(model, load_quantized_model)

        @classmethod
        def should_quantize_module(
            cls, model: Any, module_name: str, module: nn.Module, quantize_config: Any
        ) -> bool:
            """Whether the checkpoint holds codes of it: the layers of a block may differ."""
            file = getattr(model, "checkpoint_file_name", None)
            if file is not None:
                stored = _tensor_names(file, Path(file).stat().st_mtime_ns)
                if f"{module_name}.qweight" not in stored:
                    return False
            return bool(super().should_quantize_module(model, module_name, module, quantize_config))

    FactorisedQModel.__name__ = FactorisedQModel.__qualname__ = f"AsvdQ{base.__name__}"
    return FactorisedQModel


@lru_cache(maxsize=1)
def _tensor_names(path: str, written: int) -> frozenset[str]:
    """Tensors of a weight file, or of those that an index names; asked for every module.

    Args:
        written: when the file was, by which another one of the same name is told apart.
    """
    from safetensors import safe_open

    if path.endswith(".json"):
        return frozenset(json.loads(Path(path).read_text())["weight_map"])
    with safe_open(path, framework="pt") as tensors:
        return frozenset(tensors.keys())


for _family in ours.FAMILIES:
    register(_family)
