"""Norms and rotations that are recognized by what they compute, and passes over small graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from asvd_q_exporters.onnx.fused.norms import RmsNorm, fuse_norms
from asvd_q_exporters.onnx.fused.passes import drop_reshapes, expand_norms, fuse_residuals
from asvd_q_exporters.onnx.fused.rotary import RotationKind, rotation_kind
from tests.exporters.onnx.graphs import Array, graph_of, node_types, run_graph

# Norms


class LlamaRMSNorm(nn.Module):
    """y = x / √(mean(x²) + ε) · w, as Llama writes it."""

    def __init__(self, width: int = 16, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def scale(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return self.scale() * (x * torch.rsqrt(mean + self.variance_epsilon))


class OffsetRMSNorm(LlamaRMSNorm):
    def scale(self) -> Tensor:
        return 1 + self.weight


class TwiceScaledRMSNorm(LlamaRMSNorm):
    def scale(self) -> Tensor:
        return self.weight * self.weight


class CentredRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class OutsideTheRootRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)


class NoEpsilonRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))


class LeastRMSNorm(LlamaRMSNorm):
    """Differs for small inputs alone."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(mean.clamp(min=self.variance_epsilon))


class BiasedRMSNorm(LlamaRMSNorm):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * gate


class PairRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class HalfRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(torch.bfloat16)


class PlainNorm(LlamaRMSNorm):
    """Computes the right thing under a name that does not say so."""


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-2])
@pytest.mark.parametrize(("kind", "offset"), [(LlamaRMSNorm, 0), (OffsetRMSNorm, 1)])
def test_a_norm_is_found_by_what_it_computes(
    kind: type[LlamaRMSNorm], offset: int, epsilon: float
) -> None:
    model = nn.Sequential(nn.Sequential(kind(16, epsilon)), kind(24, epsilon))
    parameters = dict(model.named_parameters())
    fuse_norms(model)
    fused = [model[0][0], model[1]]  # type: ignore[index]
    assert all(isinstance(norm, RmsNorm) for norm in fused)
    assert [(norm.epsilon, norm.offset) for norm in fused] == [(epsilon, offset)] * 2
    assert {name: id(one) for name, one in model.named_parameters()} == {
        name: id(one) for name, one in parameters.items()
    }


@pytest.mark.parametrize(
    "kind",
    [
        TwiceScaledRMSNorm,
        CentredRMSNorm,
        OutsideTheRootRMSNorm,
        NoEpsilonRMSNorm,
        LeastRMSNorm,
        BiasedRMSNorm,
        GatedRMSNorm,
        PairRMSNorm,
        HalfRMSNorm,
        PlainNorm,
    ],
)
def test_a_norm_that_computes_something_else_is_left_alone(kind: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(kind(), LlamaRMSNorm())
    before = model[0]
    fuse_norms(model)
    assert model[0] is before
    assert isinstance(model[1], RmsNorm)


def test_norms_of_one_class_and_another_epsilon_are_told_apart() -> None:
    model = nn.Sequential(LlamaRMSNorm(16, 1e-5), LlamaRMSNorm(16, 1e-3))
    fuse_norms(model)
    assert [norm.epsilon for norm in model] == [1e-5, 1e-3]


# Rotations


def _rotated(states: Tensor, cos: Tensor, sin: Tensor, kind: RotationKind) -> Tensor:
    """In complex numbers: every pair times cos + i sin."""
    width = cos.shape[-1]
    head, kept = states[..., :width], states[..., width:]
    step = slice(None, None, 2) if kind.alternating else slice(width // 2)
    turn = torch.complex(cos[:, None, :, step], sin[:, None, :, step])
    if kind.interleaved:
        pairs = torch.view_as_complex(head.unflatten(-1, (-1, 2)).contiguous())
        head = torch.view_as_real(pairs * turn).flatten(-2)
    else:
        turned = torch.complex(*head.chunk(2, dim=-1)) * turn
        head = torch.cat((turned.real, turned.imag), dim=-1)
    return torch.cat((head, kept), dim=-1)


def _function(kind: RotationKind) -> Callable[..., Any]:
    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return _rotated(q, cos, sin, kind), _rotated(k, cos, sin, kind)

    return rotate


KINDS = [RotationKind(one, other) for one in (False, True) for other in (False, True)]
HALVES = KINDS[0]


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_rotation_is_found_by_what_it_computes(kind: RotationKind, part: bool) -> None:
    assert rotation_kind(_function(kind), part=part) == kind


def test_rotations_of_transformers() -> None:
    from transformers.models.cohere import modeling_cohere
    from transformers.models.glm import modeling_glm
    from transformers.models.llama import modeling_llama
    from transformers.models.phi3 import modeling_phi3

    def kinds(file: Any) -> list[RotationKind | None]:
        function = file.apply_rotary_pos_emb
        return [rotation_kind(function, part=part) for part in (False, True)]

    assert kinds(modeling_llama) == [HALVES, None]
    assert kinds(modeling_phi3) == [HALVES, HALVES]
    assert kinds(modeling_glm) == [RotationKind(interleaved=True, alternating=False)] * 2
    assert kinds(modeling_cohere)[0] == RotationKind(interleaved=True, alternating=True)


def _backwards(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return _function(HALVES)(q, k, cos, -sin)


def _queries_alone(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return _rotated(q, cos, sin, HALVES), k


def _longer(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return _function(HALVES)(q * 1.01, k, cos, sin)


def _not_at_all(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return q, k


def _in_another_shape(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return q.transpose(1, 2), k.transpose(1, 2)


def _in_bfloat16(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return [one.to(torch.bfloat16) for one in _function(HALVES)(q, k, cos, sin)]


def _three(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return (*_function(HALVES)(q, k, cos, sin), cos)


def _nothing(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return None


def _refuses(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    raise ValueError("not with these")


def _wants_more(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Any:
    return q, k


@pytest.mark.parametrize(
    "function",
    [
        _backwards,
        _queries_alone,
        _longer,
        _not_at_all,
        _in_another_shape,
        _in_bfloat16,
        _three,
        _nothing,
        _refuses,
        _wants_more,
    ],
)
def test_other_rotations_are_none(function: Callable[..., Any]) -> None:
    assert rotation_kind(function) is None
    assert rotation_kind(function, part=True) is None


# Passes

_SHAPE = ("batch", "tokens", 16)


def _reshapes(*shapes: tuple[Any, ...], last: str = "Neg") -> onnx_ir.Model:
    """x (batch, tokens, 16) through reshapes to every shape in turn, then one more node."""
    nodes, values, initializers = [], [], {}
    for index, shape in enumerate(shapes):
        sizes = [0 if one == "batch" else -1 if isinstance(one, str) else one for one in shape]
        initializers[f"sizes{index}"] = np.array(sizes)
        inputs = ["x" if index == 0 else f"r{index - 1}", f"sizes{index}"]
        nodes.append(helper.make_node("Reshape", inputs, [f"r{index}"]))
        values.append((f"r{index}", shape))
    nodes.append(helper.make_node(last, [f"r{len(shapes) - 1}"], ["y"]))
    return graph_of(nodes, {"x": _SHAPE}, {"y": shapes[-1]}, initializers, dict(values))


def _unchanged(model: onnx_ir.Model, change: Callable[[onnx_ir.Graph], Any], x: Array) -> list[str]:
    """Types of nodes after a change that has to leave what comes out as it is."""
    before = run_graph(model, {"x": x})
    change(model.graph)
    for one, other in zip(run_graph(model, {"x": x}), before, strict=True):
        assert np.array_equal(one, other)
    return node_types(model)


X = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
HEADS, ROWS = ("batch", "tokens", 4, 4), ("batch", "wide", 8)


def test_reshapes_that_lead_back_go() -> None:
    assert _unchanged(_reshapes(HEADS, _SHAPE), drop_reshapes, X) == ["Neg"]
    assert _unchanged(_reshapes(HEADS, ROWS, _SHAPE), drop_reshapes, X) == ["Neg"]
    assert _unchanged(_reshapes(_SHAPE), drop_reshapes, X) == ["Neg"]


def test_other_reshapes_stay() -> None:
    assert _unchanged(_reshapes(HEADS), drop_reshapes, X) == ["Reshape", "Neg"]
    assert _unchanged(_reshapes(HEADS, ROWS), drop_reshapes, X) == ["Reshape", "Reshape", "Neg"]
    # What comes back is passed on, what leaves again stays.
    assert _unchanged(_reshapes(HEADS, _SHAPE, ROWS), drop_reshapes, X) == ["Reshape", "Neg"]


def test_reshapes_to_sizes_without_a_name_stay() -> None:
    model = _reshapes(HEADS, _SHAPE)
    for value in (model.graph.inputs[0], model.graph.node(1).outputs[0]):
        value.shape = onnx_ir.Shape(["batch", None, 16])
    assert _unchanged(model, drop_reshapes, X) == ["Reshape", "Reshape", "Neg"]


def _rms(x: Array, weight: Array, epsilon: float) -> Array:
    """In float64."""
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + epsilon) * weight


def _norm(name: str, source: str, epsilon: float) -> onnx.NodeProto:
    return helper.make_node(
        "SimplifiedLayerNormalization",
        [source, "weight"],
        [name],
        axis=-1,
        epsilon=epsilon,
        stash_type=1,
    )


def _residual(
    *, other: tuple[Any, ...] = _SHAPE, outputs: Sequence[str] = ("y", "z")
) -> onnx_ir.Model:
    """z = 2 (x + other), and y the norm of x + other."""
    nodes = [
        helper.make_node("Add", ["x", "other"], ["sum"]),
        _norm("normed", "sum", 1e-5),
        helper.make_node("Identity", ["normed"], ["y"]),
        helper.make_node("Add", ["sum", "sum"], ["z"]),
    ]
    return graph_of(
        nodes,
        {"x": _SHAPE, "other": other},
        dict.fromkeys(outputs, _SHAPE),
        {"weight": np.linspace(-2, 2, 16, dtype=np.float32)},
        {name: _SHAPE for name in ("normed", "sum") if name not in outputs},
    )


def test_a_sum_and_its_norm_become_one_node() -> None:
    model = _residual()
    fuse_residuals(model.graph)
    assert node_types(model) == ["SkipSimplifiedLayerNormalization", "Identity", "Add"]
    other = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    x = X.copy()
    x[0], other[0] = x[0] * 1e-3, other[0] * 1e-3  # so small that epsilon counts
    x[1, 0, 3] = 1000
    y, z = run_graph(model, {"x": x, "other": other})
    weight = np.linspace(-2, 2, 16)
    assert np.allclose(y, _rms(x.astype(np.float64) + other, weight, 1e-5), rtol=1e-5, atol=1e-6)
    assert np.array_equal(z, 2 * (x + other))


def test_a_sum_that_nothing_else_reads_is_not_put_out() -> None:
    model = _residual()
    *_, add = model.graph
    model.graph.outputs.remove(add.outputs[0])
    model.graph.remove(add, safe=True)
    fuse_residuals(model.graph)
    assert [value.name for value in model.graph.node(0).outputs][1:] == ["", "", ""]
    [y] = run_graph(model, {"x": X, "other": X})
    weight = np.linspace(-2, 2, 16)
    assert np.allclose(y, _rms(2 * X.astype(np.float64), weight, 1e-5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [_residual(other=(1, 1, 16)), _residual(other=(16,)), _residual(outputs=("y", "z", "sum"))],
    ids=["one for all", "a vector", "the sum is put out"],
)
def test_other_sums_stay(model: onnx_ir.Model) -> None:
    fuse_residuals(model.graph)
    assert node_types(model) == ["Add", "SimplifiedLayerNormalization", "Identity", "Add"]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_norms_written_out_compute_the_same(scale: float, epsilon: float) -> None:
    nodes = [
        _norm("one", "x", epsilon),
        _norm("two", "one", epsilon),
        helper.make_node("Identity", ["two"], ["y"]),
    ]
    weight = np.linspace(-2, 2, 16, dtype=np.float32)
    shapes = {"one": _SHAPE, "two": _SHAPE}
    model = graph_of(nodes, {"x": _SHAPE}, {"y": _SHAPE}, {"weight": weight}, shapes)
    expand_norms(model.graph)
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} == {""}
    assert "SimplifiedLayerNormalization" not in node_types(model)
    assert proto.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    x = (X * scale).astype(np.float32)
    x[0, 0] = 0
    x[0, 1, 2] *= 1000
    expected = _rms(_rms(x, weight, epsilon), weight, epsilon)
    for optimized in (False, True):  # as it is written, and as the runtime knows it again
        (y,) = run_graph(model, {"x": x}, optimized=optimized)
        assert np.allclose(y, expected, rtol=1e-5, atol=1e-6)
