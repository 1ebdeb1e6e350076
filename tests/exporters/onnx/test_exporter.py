"""Options, refusals, memory, and how cheap it is to ask."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from asvd_q.errors import ExportError
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.quantization import QuantizedWeight
from asvd_q.store import Store, StoredLayer
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions


def plan(spec: QuantSpec | None, shape: tuple[int, int] = (64, 96)) -> Plan:
    layer = LayerPlan(
        name="layers.0.q", kind="q", block=0, shape=shape, quantization={"weight": spec}
    )
    return Plan(float_type="float32", layers=(layer,))


def test_a_group_that_no_block_has_is_refused() -> None:
    (refusal,) = OnnxExporter().can_express(plan(QuantSpec(group_size=48)))
    assert refusal.layer == "layers.0.q"
    assert "48" in refusal.reason
    assert "group_size" in refusal.instead
    assert OnnxExporter().can_express(plan(QuantSpec(group_size=100))) == []  # a single group


def test_a_method_without_an_operator_is_refused() -> None:
    exporter = OnnxExporter(OnnxOptions(operators="standard"))
    (refusal,) = exporter.can_express(plan(QuantSpec(method="nf4")))
    assert "nf4" in refusal.reason
    assert refusal.instead == "quantize it with rtn or gptq, or set operators: contrib"


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", [(64, 96), (7, 33), (1, 1)])
def test_nf4_in_blocks_of_32_to_256_is_accepted_in_any_shape(
    shape: tuple[int, int], double: bool
) -> None:
    for block in (32, 64, 128, 256):
        spec = QuantSpec(method="nf4", group_size=block, double_quant=double)
        assert OnnxExporter().can_express(plan(spec, shape)) == []


@pytest.mark.parametrize("block", [512, 1024, 2048, 4096])
def test_wider_blocks_of_nf4_are_refused(block: int) -> None:
    (refusal,) = OnnxExporter().can_express(plan(QuantSpec(method="nf4", group_size=block)))
    assert refusal.layer == "layers.0.q"
    assert f"blocks of {block} weights" in refusal.reason
    assert "group_size 256 (32, 64, 128, 256 work)" in refusal.instead


def test_nf4_beyond_what_the_runtime_counts_is_refused() -> None:
    spec = QuantSpec(method="nf4", group_size=64)
    (refusal,) = OnnxExporter().can_express(plan(spec, (2**16, 2**15)))
    assert "65536 × 32768" in refusal.reason
    assert "rtn" in refusal.instead
    assert OnnxExporter().can_express(plan(spec, (2**16, 2**15 - 1))) == []


def test_groups_in_act_order_are_refused_before_anything_is_computed() -> None:
    spec = QuantSpec(method="gptq", group_size=32, act_order=True)
    (refusal,) = OnnxExporter().can_express(plan(spec))
    assert "act order" in refusal.reason
    assert "static_groups" in refusal.instead
    static = QuantSpec(method="gptq", group_size=32, act_order=True, static_groups=True)
    assert OnnxExporter().can_express(plan(static)) == []
    assert OnnxExporter().can_express(plan(spec.model_copy(update={"group_size": -1}))) == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_only_codes_whose_products_are_rounded_have_wide_bounds(
    dtype: Literal["float32", "float16"],
) -> None:
    at = {
        level: OnnxExporter(OnnxOptions(dtype=dtype, accuracy_level=level)) for level in (0, 1, 4)
    }
    wide, narrow = at[4].bounds, at[0].bounds
    assert narrow.relative_error < wide.relative_error
    codes, nf4, floats = plan(QuantSpec(bits=4)), plan(QuantSpec(method="nf4")), plan(None)
    assert at[4].bounds_of(codes) == wide
    both = codes.model_copy(update={"layers": (*floats.layers, *codes.layers)})
    assert at[4].bounds_of(both) == wide
    for exporter in at.values():
        assert exporter.bounds_of(nf4) == exporter.bounds_of(floats) == narrow
    assert at[0].bounds_of(codes) == at[1].bounds_of(codes) == narrow


def test_a_plan_of_everything_it_holds_is_accepted(mixed_store: Store) -> None:
    assert OnnxExporter().can_express(mixed_store.plan) == []


@pytest.mark.parametrize(
    "options",
    [{"opset": 17}, {"opset": 24}, {"dtype": "bfloat16"}, {"accuracy_level": 2}, {"x": 1}],
)
def test_unknown_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OnnxOptions.model_validate(options)


def test_asking_loads_neither_torch_nor_onnx() -> None:
    program = (
        "import sys\n"
        "from asvd_q_exporters.onnx import OnnxExporter\n"
        "from asvd_q.plan import LayerPlan, Plan, QuantSpec\n"
        "layer = LayerPlan(name='a', kind='a', block=0, shape=(8, 64),\n"
        "                  quantization={'weight': QuantSpec(bits=4)})\n"
        "nf4 = layer.model_copy(update={'quantization': {'weight': QuantSpec(method='nf4')}})\n"
        "exporter = OnnxExporter()\n"
        "exporter.can_express(Plan(float_type='float32', layers=(layer, nf4)))\n"
        "exporter.stored_bytes(layer), exporter.stored_bytes(nf4)\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'transformers'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_act_order_is_refused_at_write(
    mixed_store: Store, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.0.self_attn.q_proj"
    original = Store.layer

    def permuted(self: Store, wanted: str) -> StoredLayer:
        layer = original(self, wanted)
        weight = layer.weights.get("weight")
        if wanted != name or not isinstance(weight, QuantizedWeight):
            return layer
        order = torch.arange(weight.shape[1], dtype=torch.int32).flip(0)
        parts = weight.tensors() | {"permutation": order}
        moved = QuantizedWeight.from_tensors(parts, weight.spec)
        return StoredLayer(layer.record, {"weight": moved})

    monkeypatch.setattr(Store, "layer", permuted)
    with pytest.raises(ExportError, match=f"{name}.*act order"):
        OnnxExporter().write(mixed_store, tmp_path)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("outlier", [1e6, -1e6, float("nan")])
def test_an_outlier_beyond_float16_is_named(outlier: float) -> None:
    from asvd_q_exporters.onnx.skeleton import Origin
    from asvd_q_exporters.onnx.tensors import TensorReader

    class Source:
        def tensor(self, name: str) -> torch.Tensor:
            return torch.tensor([[0.5, 1.0], [outlier, -2.0]])

    class Huge:
        float_type = "float32"
        source = Source()

    with pytest.raises(ExportError, match=r"embed\.weight.*float16.*float32"):
        TensorReader(Huge(), torch.float16, {}).read("embed.weight", Origin(tensor="x"))  # type: ignore[arg-type]


def test_the_traced_model_holds_no_weights(mixed_store: Store) -> None:
    from asvd_q_exporters.onnx.skeleton import build_skeleton

    options = OnnxOptions(accuracy_level=0)
    skeleton = build_skeleton(mixed_store.finished_plan, mixed_store.source, {}, options)
    assert skeleton.origins.keys() == dict(skeleton.model.named_parameters()).keys()
    for name, parameter in skeleton.model.named_parameters():
        assert parameter.untyped_storage().nbytes() <= 4, name
    assert not any(type(module) is nn.Linear for module in skeleton.model.modules())


@pytest.mark.slow
def test_weights_are_read_one_at_a_time_as_the_file_is_written(
    mixed_store: Store, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_ir

    from asvd_q_exporters.onnx import save as save_module
    from asvd_q_exporters.onnx.tensors import TensorReader
    from asvd_q_exporters.onnx.write import build_model

    reads: list[str] = []
    original = TensorReader.read

    def counted(self: TensorReader, name: str, origin: object) -> torch.Tensor:
        reads.append(name)
        return original(self, name, origin)  # type: ignore[arg-type]

    monkeypatch.setattr(TensorReader, "read", counted)
    traced = build_model(mixed_store, OnnxOptions(accuracy_level=0))
    model = traced.model
    merged = {name: parts for one in traced.merged for name, (parts, _) in one.tensors.items()}
    assert reads == []  # tracing and optimizing saw no value
    lazy = {
        name
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, onnx_ir.LazyTensor)
    }
    rest = [v.const_value.nbytes for n, v in model.graph.initializers.items() if n not in lazy]
    assert max(rest) <= 4096  # none is a weight
    save_module.save(model, tmp_path, False)
    assert sorted(reads) == sorted(
        part for name in lazy for part in merged.get(name, [name])
    )  # each exactly once
