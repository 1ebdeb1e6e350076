"""Products that become one, in small graphs: what comes out stays the same to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import helper

from asvd_q_exporters.onnx.fused.merge import Merged, merge_products
from tests.exporters.onnx.graphs import Array, graph_of, node_types, run_graph

_IN = 64
_WIDTH, _HEADS, _KV_HEADS = 16, 4, 2
_ROWS = {"q_proj": _HEADS * _WIDTH, "k_proj": _KV_HEADS * _WIDTH, "v_proj": _KV_HEADS * _WIDTH}


@dataclass(frozen=True)
class Product:
    """y = x Wᵀ + bias.

    Attributes:
        bits: of codes in `MatMulNBits`; None for a `MatMul` of floats, which has no bias.
    """

    name: str
    rows: int
    bits: int | None = 4
    block: int = 32
    zero_points: bool = True
    bias: bool = False
    source: str = "x"
    output: str = ""

    @property
    def result(self) -> str:
        return self.output or self.name

    def arrays(self, seed: int) -> dict[str, Array]:
        """Initializers, under the part of their names that comes last."""
        random = np.random.default_rng(seed)
        if self.bits is None:
            return {"weight": random.normal(size=(_IN, self.rows)).astype(np.float32)}
        blocks = _IN // self.block
        packed = -(-blocks * self.bits // 8)
        codes = (self.rows, blocks, self.block * self.bits // 8)
        arrays: dict[str, Array] = {
            "codes": random.integers(0, 256, codes, dtype=np.uint8),
            "scales": random.normal(size=(self.rows, blocks)).astype(np.float32),
        }
        if self.zero_points:
            arrays["zero_points"] = random.integers(0, 256, (self.rows, packed), dtype=np.uint8)
        if self.bias:
            arrays["bias"] = random.normal(size=self.rows).astype(np.float32)
        return arrays

    def node(self) -> onnx.NodeProto:
        if self.bits is None:
            return helper.make_node("MatMul", [self.source, f"{self.name}.weight"], [self.result])
        inputs = [self.source, f"{self.name}.codes", f"{self.name}.scales"]
        if self.zero_points or self.bias:
            inputs.append(f"{self.name}.zero_points" if self.zero_points else "")
        if self.bias:
            inputs += ["", f"{self.name}.bias"]
        return helper.make_node(
            "MatMulNBits",
            inputs,
            [self.result],
            domain="com.microsoft",
            N=self.rows,
            K=_IN,
            bits=self.bits,
            block_size=self.block,
            accuracy_level=0,
        )


def _weights(products: Sequence[Product]) -> dict[str, Array]:
    return {
        f"{product.name}.{part}": array
        for seed, product in enumerate(products)
        for part, array in product.arrays(seed).items()
    }


def _model(
    products: Sequence[Product], others: Sequence[onnx.NodeProto], outputs: Mapping[str, int]
) -> onnx_ir.Model:
    inputs = {product.source: ("batch", "tokens", _IN) for product in products}
    integers, results = {}, {name: ("batch", "tokens", rows) for name, rows in outputs.items()}
    if any(node.op_type == "GroupQueryAttention" for node in others):
        past = ("batch", _KV_HEADS, "past", _WIDTH)
        inputs |= {"past_key": past, "past_value": past}  # type: ignore[dict-item]
        present = ("batch", _KV_HEADS, "all", _WIDTH)
        results |= {"present_key": present, "present_value": present}  # type: ignore[dict-item]
        integers = {"last": ("batch",), "total": (1,)}
    model = graph_of(
        [*(product.node() for product in products), *others],
        inputs | integers,  # type: ignore[arg-type]
        results,  # type: ignore[arg-type]
        _weights(products),
        {product.result: ("batch", "tokens", product.rows) for product in products},
        integers=list(integers),
    )
    for name in _weights(products):  # as in a graph whose weights are still to be read
        model.graph.initializers[name].const_value = None
    return model


def _fill(
    model: onnx_ir.Model, products: Sequence[Product], merged: Sequence[Merged]
) -> onnx_ir.Model:
    weights = _weights(products)
    held = {name: parts for one in merged for name, parts in one.tensors.items()}
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            parts, axis = held.get(name, ((name,), 0))
            array = np.concatenate([weights[part] for part in parts], axis)
            assert tuple(value.shape or ()) == array.shape
            value.const_value = onnx_ir.tensor(array, name=name)
    return model


def _feeds(model: onnx_ir.Model, batch: int, tokens: int, past: int) -> dict[str, Array]:
    random = np.random.default_rng(batch)
    sizes = {"batch": batch, "tokens": tokens, "past": past}
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        shape = [sizes.get(str(one), one) for one in value.shape or ()]
        feeds[str(value.name)] = random.normal(size=shape).astype(np.float32)
    if "total" in feeds:
        feeds["total"] = np.array([past + tokens], np.int32)
        feeds["last"] = np.full(batch, past + tokens - 1, np.int32)
    return feeds


def _merge(
    products: Sequence[Product],
    others: Sequence[onnx.NodeProto],
    outputs: Mapping[str, int],
    *,
    whole: bool = False,
) -> tuple[list[str], tuple[Merged, ...]]:
    """Merge, and hold what comes out against the graph as it was: types of nodes, what merged."""
    plain, model = (_model(products, others, outputs) for _ in range(2))
    merged = merge_products(model.graph, whole=whole)
    _fill(plain, products, ())
    _fill(model, products, merged)
    for batch, tokens, past in ((1, 1, 7), (2, 1, 3), (1, 5, 0), (3, 9, 0)):
        feeds = _feeds(plain, batch, tokens, past)
        for one, other in zip(run_graph(model, feeds), run_graph(plain, feeds), strict=True):
            assert np.isfinite(one).all()
            assert np.array_equal(one, other)
    return node_types(model), merged


def _attention(*sources: str) -> onnx.NodeProto:
    return helper.make_node(
        "GroupQueryAttention",
        [*sources, "past_key", "past_value", "last", "total"],
        ["y", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=_HEADS,
        kv_num_heads=_KV_HEADS,
        scale=0.01,
    )


def _attend(*products: Product, whole: bool = False) -> tuple[list[str], tuple[Merged, ...]]:
    sources = [product.result for product in products]
    return _merge(products, [_attention(*sources)], {"y": _HEADS * _WIDTH}, whole=whole)


def _three(**settings: object) -> list[Product]:
    return [
        Product(f"model.layers.0.attn.{name}", rows, **settings)  # type: ignore[arg-type]
        for name, rows in _ROWS.items()
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": None},
        {"bits": 4},
        {"bits": 8, "block": 16},
        {"bits": 2, "block": 64, "zero_points": False},
        {"bits": 4, "bias": True},
        {"bits": 8, "bias": True, "zero_points": False},
    ],
    ids=str,
)
def test_queries_keys_and_values_become_one_product(settings: dict[str, object]) -> None:
    products = _three(**settings)
    types, (one,) = _attend(*products)
    assert types == ["MatMul" if settings["bits"] is None else "MatMulNBits", "GroupQueryAttention"]
    assert one.name == "model.layers.0.attn.q_proj+k_proj+v_proj"
    queries, keys, values = (product.name for product in products)
    assert one.members == {queries: (0, 64), keys: (64, 96), values: (96, 128)}
    parts = products[0].arrays(0)
    axis = 1 if settings["bits"] is None else 0
    assert one.tensors == {
        f"{one.name}.{part}": (tuple(f"{product.name}.{part}" for product in products), axis)
        for part in parts
    }


def _changed(name: str, **changes: object) -> list[Product]:
    products = _three()
    index = list(_ROWS).index(name)
    products[index] = Product(**(products[index].__dict__ | changes))
    return products


@pytest.mark.parametrize(
    ("odd", "changes"),
    [
        ("k_proj", {"bits": 8}),
        ("k_proj", {"bits": None}),
        ("v_proj", {"block": 16}),
        ("q_proj", {"zero_points": False}),
        ("v_proj", {"bias": True}),
        ("v_proj", {"source": "another"}),
    ],
    ids=["bits", "floats", "blocks", "zero points", "a bias", "another input"],
)
def test_a_product_that_differs_stays_apart(odd: str, changes: dict[str, object]) -> None:
    products = _changed(odd, **changes)
    types, merged = _attend(*products)
    assert merged == ()
    assert len(types) == 4
    types, (one,) = _attend(*products, whole=True)
    assert set(one.members) == {p.name for p in products if not p.name.endswith(odd)}
    assert types.count("Split") == 1
    assert len(types) == 4  # both products, what splits one of them, and attention


def test_products_that_something_else_reads_stay_apart_or_are_split() -> None:
    products = _three()
    others = [
        _attention(*(product.result for product in products)),
        helper.make_node("Neg", [products[1].result], ["z"]),
    ]
    outputs = {"y": _HEADS * _WIDTH, "z": _ROWS["k_proj"]}
    _, merged = _merge(products, others, outputs)
    assert merged == ()
    types, (one,) = _merge(products, others, outputs, whole=True)
    assert list(one.members) == [product.name for product in products]
    assert types.count("Split") == 1


def test_products_that_attention_reads_turned_stay_apart_or_are_split() -> None:
    products = _three()
    queries, keys, values = (product.result for product in products)
    others = [helper.make_node("Neg", [queries], ["turned"]), _attention("turned", keys, values)]
    _, merged = _merge(products, others, {"y": _HEADS * _WIDTH})
    assert merged == ()
    types, (one,) = _merge(products, others, {"y": _HEADS * _WIDTH}, whole=True)
    assert list(one.members) == [product.name for product in products]
    assert types.count("Split") == 1


def _put_out(*factors: Product, whole: bool = False) -> tuple[list[str], tuple[Merged, ...]]:
    """Every product is read twice."""
    others = [
        helper.make_node(kind, [factor.result], [f"y{index}{kind}"])
        for index, factor in enumerate(factors)
        for kind in ("Neg", "Abs")
    ]
    rows = {f"y{i}{kind}": one.rows for i, one in enumerate(factors) for kind in ("Neg", "Abs")}
    return _merge(factors, others, rows, whole=whole)


@pytest.mark.parametrize("bits", [None, 2, 4, 8])
def test_factors_of_one_input_become_one_product(bits: int | None) -> None:
    first = Product("layers.3.mlp.gate_proj.BLinear", 24, bits, output="gate")
    second = Product("layers.3.mlp.up_proj.BLinear", 7, bits, output="up")
    types, (one,) = _put_out(first, second)
    assert one.name == "layers.3.mlp.gate_proj.BLinear+up_proj.BLinear"
    assert one.members == {first.name: (0, 24), second.name: (24, 31)}
    assert types.count("MatMulNBits") + types.count("MatMul") == types.count("Split") == 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_whole_matrices_of_codes_become_one_product_where_asked_for(bits: int) -> None:
    first = Product("layers.3.mlp.gate_proj", 24, bits, output="gate")
    second = Product("layers.3.mlp.up_proj", 7, bits, output="up")
    _, merged = _put_out(first, second)
    assert merged == ()
    types, (one,) = _put_out(first, second, whole=True)
    assert one.name == "layers.3.mlp.gate_proj+up_proj"
    assert one.members == {first.name: (0, 24), second.name: (24, 31)}
    assert types.count("MatMulNBits") == types.count("Split") == 1


def test_whole_matrices_of_floats_stay_apart() -> None:
    pair = [Product("0.gate_proj", 24, None), Product("0.up_proj", 7, None)]
    _, merged = _put_out(*pair, whole=True)
    assert merged == ()


def test_a_product_that_the_graph_puts_out_stays_as_it_is() -> None:
    products = [Product("0.up_proj", 16), Product("head", 24)]
    others = [helper.make_node("Neg", [products[0].result], ["y"])]
    _, merged = _merge(products, others, {"y": 16, "head": 24}, whole=True)
    assert merged == ()


def test_products_are_merged_with_those_of_their_kind_alone() -> None:
    odd = Product("0.v_proj.BLinear", 16, 8)
    elsewhere = Product("0.o_proj.BLinear", 16, source="another")
    floats = Product("0.o_proj", 16, None)
    pair = [Product("0.q_proj.BLinear", 16), Product("0.k_proj", 24)]
    _, (one,) = _put_out(pair[0], odd, elsewhere, floats, pair[1], whole=True)
    assert one.members == {"0.q_proj.BLinear": (0, 16), "0.k_proj": (16, 40)}
    _, merged = _put_out(pair[0], odd, elsewhere, floats, pair[1])
    assert merged == ()
    _, merged = _put_out(odd, elsewhere, floats, pair[0], whole=True)
    assert merged == ()


def test_what_has_a_value_already_is_no_weight() -> None:
    products = _three()
    others = [_attention(*(product.result for product in products))]
    model = _fill(_model(products, others, {"y": _HEADS * _WIDTH}), products, ())
    before = copy.deepcopy(onnx_ir.to_proto(model))
    assert merge_products(model.graph) == ()
    assert onnx_ir.to_proto(model) == before
