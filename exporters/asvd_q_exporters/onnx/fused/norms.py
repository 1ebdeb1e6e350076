"""RMS norms in ONNX Runtime's operator, where a module is found to compute what it does."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["RmsNorm", "fuse_norms"]

_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_ROWS = 3


class RmsNorm(nn.Module):
    """y = x / √(mean(x²) + ε) · w, or · (1 + w).

    Attributes:
        weight: (width,), under the name that it has in the model.
    """

    def __init__(self, weight: nn.Parameter, epsilon: float, offset: int) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon
        self.offset = offset

    def forward(self, hidden_states: Tensor) -> Tensor:
        """One `SimplifiedLayerNormalization` over the last dimension."""
        scale = self.weight + self.offset if self.offset else self.weight
        output: Tensor = torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization",
            (hidden_states, scale),
            {"axis": -1, "epsilon": self.epsilon, "stash_type": 1},
            dtype=hidden_states.dtype,
            shape=hidden_states.shape,
            version=1,
        )
        return output


def fuse_norms(model: nn.Module) -> None:
    """Put `RmsNorm` in the place of every module of the model that computes the same."""
    found: dict[tuple[type, int, float], int | None] = {}
    for name, module in list(model.named_modules()):
        epsilon = _epsilon(module)
        if epsilon is None:
            continue
        key = (type(module), _width(module), epsilon)
        if key not in found:
            found[key] = _offset(module, epsilon)
        offset = found[key]
        if offset is not None:
            model.set_submodule(name, RmsNorm(module.get_parameter("weight"), epsilon, offset))


def _epsilon(module: nn.Module) -> float | None:
    """Of a module that may be an RMS norm: one vector, and a small number."""
    parameters = dict(module.named_parameters())
    if "RMSNorm" not in type(module).__name__ or list(parameters) != ["weight"]:
        return None
    numbers = [getattr(module, name) for name in _EPSILONS if hasattr(module, name)]
    if parameters["weight"].dim() != 1 or len(numbers) != 1 or not isinstance(numbers[0], float):
        return None
    return numbers[0]


def _width(module: nn.Module) -> int:
    return module.get_parameter("weight").shape[0]


def _offset(module: nn.Module, epsilon: float) -> int | None:
    """What is added to the weight; None where the module computes something else."""
    trial = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    width = _width(module)
    weight = torch.rand((width,), generator=generator) + 0.5
    trial.weight = nn.Parameter(weight, requires_grad=False)
    # Small inputs, for which epsilon counts, and large ones.
    inputs = torch.randn((2, _ROWS, width), generator=generator)
    inputs[0] *= epsilon**0.5
    normed = inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + epsilon)
    try:
        output = trial(inputs)
        for offset in (0, 1):
            if torch.allclose(output, normed * (weight + offset), rtol=1e-5):
                return offset
    except (TypeError, RuntimeError, ValueError, IndexError, AttributeError):
        pass  # it wants other inputs, or puts out something else than a tensor of their type
    return None
