"""Low-rank layers for transformers models. Imports torch and transformers alone.

The library uses this file and copies it verbatim into checkpoints, whose `auto_map` points at
it: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` needs nothing else.

The classes are made when they are asked for: `AsvdQ` in front of the name of any configuration
or model class that transformers has. `AsvdQLlamaForCausalLM` is a `LlamaForCausalLM` whose
layers named in `config.truncation_ranks` are pairs of smaller ones, and whose layers named in
`config.correction_ranks` have such a pair beside their weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

__all__ = [
    "CodedCorrectedLinear",
    "CorrectedLinear",
    "LowRankLinear",
    "auto_map",
    "base_type",
    "register",
    "swap_factors",
]

_PREFIX = "AsvdQ"
_TYPE_PREFIX = "asvd_q_"
_AUTO_MODELS = {"AutoModel": "MODEL_MAPPING", "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING"}


class LowRankLinear(nn.Module):
    """y = A (B x) + bias, in place of a linear layer (out, in).

    `BLinear` (rank, in) is applied first; `ALinear` (out, rank) carries the bias. The names are
    those of the checkpoints that the authors of ASVD published.
    """

    def __init__(
        self,
        in_features: int,
        rank: int,
        out_features: int,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.BLinear = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.ALinear = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Outputs (…, out) of inputs (…, in)."""
        output: torch.Tensor = self.ALinear(self.BLinear(hidden_states))
        return output


class CorrectedLinear(nn.Module):
    """y = W x + A (B x) + bias, where W (out, in) is coarse and A B makes up for it.

    `BLinear` (rank, in) and `ALinear` (out, rank) lie beside the weight; the bias is its own.
    It is no `nn.Linear`: packages that put a layer of theirs in place of every one of those
    would drop what lies beside the weight.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        rank: int,
        out_features: int,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        coarse = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.weight = coarse.weight
        self.register_parameter("bias", coarse.bias)
        self.BLinear = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.ALinear = nn.Linear(rank, out_features, bias=False, device=device, dtype=dtype)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Outputs (…, out) of inputs (…, in)."""
        correction: torch.Tensor = self.ALinear(self.BLinear(hidden_states))
        return functional.linear(hidden_states, self.weight, self.bias) + correction


class CodedCorrectedLinear(nn.Linear):
    """A `CorrectedLinear` for compressed-tensors, with the same tensors under the same names.

    That package turns codes into the weight of an `nn.Linear` and of nothing else. It puts no
    layer of its own in the place: what lies beside the weight stays.
    """

    def __init__(
        self,
        in_features: int,
        rank: int,
        out_features: int,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.BLinear = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.ALinear = nn.Linear(rank, out_features, bias=False, device=device, dtype=dtype)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Outputs (…, out) of inputs (…, in)."""
        correction: torch.Tensor = self.ALinear(self.BLinear(hidden_states))
        return super().forward(hidden_states) + correction


def swap_factors(
    module: nn.Module,
    ranks: Mapping[str, int],
    prefix: str = "",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    corrections: Mapping[str, int] | None = None,
    corrected: type[CorrectedLinear] | type[CodedCorrectedLinear] = CorrectedLinear,
) -> None:
    """Put an empty layer of ours in place of every linear layer that is named.

    Args:
        module: changed in place; its parameters may be on the meta device.
        ranks: name of a layer that becomes a `LowRankLinear` → rank, names as in the causal
            language model.
        prefix: dotted path of `module` in that model; names outside it are left out.
        device, dtype: of the new layers; by default those of the layer they replace.
        corrections: name of a layer that becomes a `corrected` → rank.
        corrected: class of the layers with a correction.

    Raises:
        ValueError: a name is that of no layer, or of no linear one.
    """
    _swap(module, ranks, prefix, device, dtype, LowRankLinear, "truncation_ranks")
    _swap(module, corrections or {}, prefix, device, dtype, corrected, "correction_ranks")


def _swap(
    module: nn.Module,
    ranks: Mapping[str, int],
    prefix: str,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    made: type[LowRankLinear] | type[CorrectedLinear] | type[CodedCorrectedLinear],
    key: str,
) -> None:
    """Replace layers by those of one class; `key` is where the configuration names them."""
    dot = f"{prefix}." if prefix else ""
    for name, rank in ranks.items():
        if not name.startswith(dot):
            continue
        path = name.removeprefix(dot)
        try:
            layer = module.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"{key}: {name} is no layer of this model") from error
        if isinstance(layer, nn.Linear):
            in_features, out_features = layer.in_features, layer.out_features
        elif isinstance(layer, Conv1D):  # keeps its weight as (in, out)
            in_features, out_features = layer.nx, layer.nf
        else:
            raise ValueError(f"{key}: {name} is a {type(layer).__name__}, not linear")
        replacement = made(
            in_features,
            rank,
            out_features,
            bias=layer.bias is not None,
            device=layer.weight.device if device is None else device,
            dtype=layer.weight.dtype if dtype is None else dtype,
        )
        module.set_submodule(path, replacement.train(layer.training))


def auto_map(base: type[PreTrainedConfig]) -> dict[str, str]:
    """The `auto_map` of a checkpoint with factors of the architecture `base` configures.

    Raises:
        KeyError: transformers has no causal language model for that configuration.
    """
    stem = "modeling_asvd_q"
    classes = {"AutoConfig": base, **_base_models(base)}
    return {name: f"{stem}.{_PREFIX}{found.__name__}" for name, found in classes.items()}


def base_type(model_type: str) -> str:
    """The architecture that a checkpoint's `model_type` builds on: "asvd_q_llama" → "llama"."""
    return model_type.removeprefix(_TYPE_PREFIX)


def register(base: type[PreTrainedConfig]) -> str:
    """Let the auto classes load checkpoints of this architecture without remote code.

    Returns:
        The `model_type` that was registered, such as "asvd_q_llama".
    """
    config_class = _derived(base)
    transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for name, model in _base_models(base).items():
        getattr(transformers, name).register(config_class, _derived(model), exist_ok=True)
    return str(config_class.model_type)


def _base_models(base: type[PreTrainedConfig]) -> dict[str, type[PreTrainedModel]]:
    found = {name: getattr(transformers, table)[base] for name, table in _AUTO_MODELS.items()}
    return {
        name: model[0] if isinstance(model, list | tuple) else model
        for name, model in found.items()
    }


def _derived(base: type[Any]) -> type[Any]:
    """Our class for one of transformers'; the same object every time."""
    name = _PREFIX + base.__name__
    if name not in globals():
        globals()[name] = _config(base) if issubclass(base, PreTrainedConfig) else _model(base)
    made: type[Any] = globals()[name]
    return made


def _config(base: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    namespace = {
        "__module__": __name__,
        "__doc__": f"A {base.__name__} with the ranks of its low-rank layers, by their names.",
        "__annotations__": {
            "truncation_ranks": dict[str, int],
            "correction_ranks": dict[str, int],
        },
        "model_type": _TYPE_PREFIX + base.model_type,
        "truncation_ranks": field(default_factory=dict),
        "correction_ranks": field(default_factory=dict),
        "_auto_class": "AutoConfig",
    }
    return type(_PREFIX + base.__name__, (base,), namespace)


def _model(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    config_class = _derived(base.config_class)

    def init(self: Any, config: Any, *inputs: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *inputs, **kwargs)
        # A model without its head has the same layers under shorter names.
        headless = self.base_model is self
        swap_factors(
            self,
            config.truncation_ranks,
            self.base_model_prefix if headless else "",
            corrections=config.correction_ranks,
            corrected=CodedCorrectedLinear if _holds_codes(config) else CorrectedLinear,
        )

    causal = _base_models(config_class.__bases__[0]).get("AutoModelForCausalLM")
    namespace = {
        "__module__": __name__,
        "__doc__": f"A {base.__name__} with the low-rank layers that its configuration names.",
        "__init__": init,
        "config_class": config_class,
        # Saving copies this file along only for classes that belong to an auto class.
        "_auto_class": "AutoModelForCausalLM" if base is causal else "AutoModel",
    }
    return type(_PREFIX + base.__name__, (base,), namespace)


def _holds_codes(config: PreTrainedConfig) -> bool:
    """Whether compressed-tensors made the checkpoint's weights smaller."""
    quantization = getattr(config, "quantization_config", None) or {}
    if not isinstance(quantization, Mapping):
        quantization = quantization.to_dict()
    return quantization.get("quant_method") == "compressed-tensors"


def __getattr__(name: str) -> type[Any]:
    base = None
    if name.startswith(_PREFIX):
        base = getattr(transformers, name.removeprefix(_PREFIX), None)
    if not (isinstance(base, type) and issubclass(base, PreTrainedConfig | PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _derived(base)
