"""Gives a weightless module its weights: the source's, or the matrices that replace them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from asvd_q.models.buffers import persistent_buffers
from asvd_q.models.modeling_asvd_q import CorrectedLinear, LowRankLinear
from asvd_q.models.source import SourceModel
from asvd_q.plan import Slot

__all__ = ["Replaced", "assemble", "nothing_replaced"]

Replaced = Callable[[str], Mapping[Slot, Tensor] | None]
"""Layer name → the matrices (out, in) that stand in for its weight; None leaves the source's."""


def nothing_replaced(name: str) -> None:
    """The lookup of the dense model."""
    return


def assemble(
    skeleton: nn.Module,
    prefix: str,
    source: SourceModel,
    replaced: Replaced,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> nn.Module:
    """A copy of `skeleton` with real weights.

    Args:
        skeleton: parameters on the meta device, buffers with their values; not modified.
        prefix: dotted path of `skeleton` in the model, "" for the whole of it.
        source: where untouched parameters are read from.
        replaced: what stands in for a layer's weight. Factors become a `LowRankLinear`, a matrix
            with a correction a `CorrectedLinear`, one alone an ordinary linear layer; the bias
            is the source's in all of them. An embedding keeps its module, and what is tied to it
            gets the same matrix.
        dtype: of all floating-point parameters, and of buffers that checkpoints hold. Others, such
            as frequencies of rotations, keep theirs.

    Raises:
        ModelError: the source lacks a parameter that the model has.
    """
    module = copy.deepcopy(skeleton)
    dot = f"{prefix}." if prefix else ""
    made: list[tuple[str, nn.Module]] = []
    for path, child in list(module.named_modules()):
        matrices = replaced(dot + path)
        if matrices is None:
            continue
        if isinstance(child, nn.Embedding):
            _fill_shared(module, child.weight, matrices["weight"].to(device=device, dtype=dtype))
            continue
        bias = None
        if getattr(child, "bias", None) is not None:
            bias = source.tensor(f"{dot}{path}.bias")
        layer = _linear(matrices, bias).to(device=device, dtype=dtype)
        made.append((path, layer))
    for path, layer in made:
        module.set_submodule(path, layer)
    _load_rest(module, dot, source, device, dtype)
    held = {name for name, _, _ in persistent_buffers(module)}
    for buffer_name, buffer in list(module.named_buffers()):
        owner, _, leaf = buffer_name.rpartition(".")
        rounded = buffer_name in held and buffer.is_floating_point()
        module.get_submodule(owner)._buffers[leaf] = buffer.to(
            device=device, dtype=dtype if rounded else buffer.dtype
        )
    return module.eval().requires_grad_(False)


def _fill_shared(module: nn.Module, empty: Tensor, weight: Tensor) -> None:
    """Put a matrix wherever a parameter stands: tied ones stay one parameter."""
    filled = nn.Parameter(weight, requires_grad=False)
    for owner in module.modules():
        for leaf, parameter in list(owner._parameters.items()):
            if parameter is empty:
                owner._parameters[leaf] = filled


def _linear(matrices: Mapping[Slot, Tensor], bias: Tensor | None) -> nn.Module:
    if "B" not in matrices:
        return _filled(matrices["weight"], bias)
    corrected = "weight" in matrices
    rank, in_features = matrices["B"].shape
    made = CorrectedLinear if corrected else LowRankLinear
    layer = made(in_features, rank, matrices["A"].shape[0], bias=bias is not None, device="meta")
    layer.BLinear = _filled(matrices["B"], None)
    layer.ALinear = _filled(matrices["A"], None if corrected else bias)
    if corrected:
        layer.weight = nn.Parameter(matrices["weight"], requires_grad=False)
        found = None if bias is None else nn.Parameter(bias, requires_grad=False)
        layer.register_parameter("bias", found)
    return layer


def _filled(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _load_rest(
    module: nn.Module,
    dot: str,
    source: SourceModel,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Fill every parameter still on the meta device; tied ones stay one parameter."""
    loaded: dict[int, nn.Parameter] = {}
    pending = [
        (name, parameter)
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if parameter.is_meta
    ]
    # Names the file has come first, so that a tied name it leaves out finds its twin.
    pending.sort(key=lambda item: source.resolve(dot + item[0]) is None)
    for name, empty in pending:
        owner, _, leaf = name.rpartition(".")
        if id(empty) not in loaded:
            tensor = source.tensor(dot + name).to(device=device, dtype=dtype)
            loaded[id(empty)] = nn.Parameter(tensor, requires_grad=False)
        setattr(module.get_submodule(owner), leaf, loaded[id(empty)])
