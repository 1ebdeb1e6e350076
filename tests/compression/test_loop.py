"""What the loop writes, and how it fails: loudly, by name, never with a made-up layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from asvd_q.compression import check_weights, decompose, layer, matrices
from asvd_q.decomposition import Spectrum, spectrum
from asvd_q.errors import NumericsError
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.plan import LayerPlan
from asvd_q.quantization import quantize
from asvd_q.recipe import DecomposeSection
from asvd_q.statistics.collectors import SiteStatistics
from tests.compression.job import compress_to, hashes, quiet
from tests.models.families import FAMILIES, save_family

RANKS = {"ranks": {"*": 9}}
RTN = {"bits": 4, "group_size": 16, "symmetric": False}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_family("llama", tmp_path / "model")


def damage(model: Path, name: str, value: float) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors[name].view(-1)[5] = value
    save_file(tensors, model / "model.safetensors")


def test_quantization_alone_is_the_quantizer_on_the_source_weight(
    model: Path, tmp_path: Path
) -> None:
    store = compress_to(tmp_path / "store", model, quantize=RTN, windows=None)
    for stored in store.layers():
        record = stored.record
        weight = store.source.tensor(f"{record.name}.weight")
        spec = record.quantization["weight"]
        assert spec is not None
        expected = quantize(weight, spec)
        found = stored.weights["weight"].tensors()
        assert all(torch.equal(found[part], value) for part, value in expected.tensors().items())
        error = (expected.dequantize().double() - weight.double()).norm() / weight.double().norm()
        assert record.errors == {"quantize": pytest.approx(float(error), rel=1e-9)}
        assert record.error_basis == "weight"
        assert record.bytes_after == expected.nbytes
        assert record.bytes_before == 4 * weight.numel()


def test_calibration_changes_the_errors_and_not_the_codes_of_rtn(
    model: Path, tmp_path: Path
) -> None:
    without = compress_to(tmp_path / "without", model, quantize=RTN, windows=None)
    with_ = compress_to(tmp_path / "with", model, quantize=RTN)
    for one, two in zip(without.layers(), with_.layers(), strict=True):
        assert torch.equal(one.weights["weight"].dequantize(), two.weights["weight"].dequantize())
        assert (one.record.error_basis, two.record.error_basis) == ("weight", "output")


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_are_quantized_from_float64(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_family(family, tmp_path / "other")
    dtypes: set[torch.dtype] = set()
    original = matrices.quantize

    def spy(matrix: torch.Tensor, *rest: Any) -> Any:
        dtypes.add(matrix.dtype)
        return original(matrix, *rest)

    monkeypatch.setattr(matrices, "quantize", spy)
    store = compress_to(tmp_path / "store", model, decompose=RANKS, quantize=RTN)
    assert dtypes == {torch.float64}
    for stored in store.layers():
        assert set(stored.record.errors) == {"decompose", "quantize"}
        assert 0 < stored.record.errors["decompose"] < stored.record.errors["quantize"]
        shapes = {slot: weight.shape for slot, weight in stored.weights.items()}
        assert shapes == stored.record.slot_shapes()


def test_a_float_type_narrower_than_the_source_is_what_is_stored_and_measured(
    model: Path, tmp_path: Path
) -> None:
    wide = compress_to(tmp_path / "wide", model, decompose=RANKS)
    narrow = compress_to(tmp_path / "narrow", model, decompose=RANKS, float_type="bfloat16")
    for one, two in zip(wide.layers(), narrow.layers(), strict=True):
        assert two.weights["A"].tensors()["weight"].dtype == torch.bfloat16
        expected = one.weights["A"].dequantize().bfloat16().float()
        torch.testing.assert_close(two.weights["A"].dequantize(), expected, rtol=1e-2, atol=1e-6)
        assert two.record.errors["decompose"] > one.record.errors["decompose"]
        assert two.record.bytes_after * 2 == one.record.bytes_after


@pytest.mark.parametrize("quantization", [None, RTN], ids=["floats", "codes"])
def test_a_layer_whose_decomposition_fails_stays_as_it_was(
    quantization: dict[str, Any] | None,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "model.layers.0.mlp.up_proj"

    def fail(weight: torch.Tensor, scaling: Any, layer_name: str) -> Spectrum:
        if layer_name == name:
            raise torch.linalg.LinAlgError("did not converge\nsecond line")  # type: ignore[attr-defined]
        return spectrum(weight, scaling, layer_name)

    monkeypatch.setattr(decompose, "spectrum", fail)
    store = compress_to(tmp_path / "store", model, decompose=RANKS, quantize=quantization)
    for record in store.records():
        assert record.form == ("dense" if record.name == name else "factors")
    kept = store.layer(name)
    assert kept.record.reason == "its decomposition failed: did not converge"
    assert kept.record.rank is None
    assert kept.record.quantization == {"weight": None}
    assert kept.record.bytes_after == kept.record.bytes_before
    assert torch.equal(kept.weights["weight"].dequantize(), store.source.tensor(f"{name}.weight"))
    assert store.replaced(name) is None
    assert name not in store.metadata("store").truncation_ranks


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", ["model.layers.1.mlp.gate_proj", "model.norm"])
def test_a_weight_that_is_not_finite_is_found_before_anything_is_written(
    layer: str, value: float, model: Path, tmp_path: Path
) -> None:
    damage(model, f"{layer}.weight", value)
    before = hashes(tmp_path)
    source = SourceModel.open(str(model))
    with pytest.raises(NumericsError, match=rf"^{re.escape(layer)}: .*NaN or infinity"):
        check_weights(BlockwiseModel(source), quiet)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("windows", [True, False], ids=["calibrated", "uncalibrated"])
def test_the_loop_itself_refuses_such_a_weight_too(
    windows: bool, value: float, model: Path, tmp_path: Path
) -> None:
    damage(model, "model.layers.0.mlp.down_proj.weight", value)
    options: dict[str, Any] = {"quantize": RTN} if windows else {"quantize": RTN, "windows": None}
    with pytest.raises(NumericsError, match=r"model\.layers\.0\.mlp\.down_proj.*NaN or infinity"):
        compress_to(tmp_path / "store", model, **options)
    assert list(hashes(tmp_path / "store")) == ["store.json"]


def test_an_activation_that_overflows_names_the_site(model: Path, tmp_path: Path) -> None:
    damage(model, "model.layers.1.input_layernorm.weight", float("inf"))
    with pytest.raises(NumericsError, match=r"input of model\.layers\.1\.self_attn\.q_proj"):
        compress_to(tmp_path / "store", model, decompose=RANKS)


def test_a_factor_too_large_for_float16_names_the_layer(model: Path, tmp_path: Path) -> None:
    damage(model, "model.layers.0.mlp.up_proj.weight", 1e30)
    with pytest.raises(
        NumericsError, match=r"layers\.0\.mlp\.up_proj: a value does not fit into fl"
    ):
        compress_to(
            tmp_path / "store",
            model,
            decompose=RANKS | {"scaling": "none", "include": ["*up_proj"]},
            float_type="float16",
            windows=None,
        )


def test_a_low_numerical_rank_is_noted(tmp_path: Path) -> None:
    model = save_family("llama", tmp_path / "low")
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.weight"][3:] = 0
    save_file(tensors, model / "model.safetensors")
    store = compress_to(tmp_path / "store", model, decompose=RANKS)
    assert any(
        "numerical rank 3 is below the planned 9" in n for n in store.layer(name).record.notes
    )
    assert store.layer("model.layers.0.mlp.gate_proj").record.notes == ()


def test_damping_that_had_to_be_raised_is_noted() -> None:
    """Rounding can leave a Gram slightly indefinite: here one eigenvalue of −1e-3."""
    plan = LayerPlan(
        name="model.layers.0.mlp.up_proj",
        kind="up_proj",
        block=0,
        shape=(6, 4),
        form="factors",
        rank=2,
        quantization={"A": None, "B": None},
    )
    gram = torch.diag(torch.tensor([2.0, 1.0, 1.0, -1e-3], dtype=torch.float64))
    ones = torch.ones(4, dtype=torch.float64)
    stored = layer.compress_layer(
        torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),
        plan,
        "float32",
        section=DecomposeSection.model_validate({"kept_ratio": 0.5, "scaling": "whitening"}),
        statistics=SiteStatistics(tokens=10, abs_mean=ones, abs_max=ones, gram=gram),
    )
    assert stored.record.form == "factors"
    assert stored.record.notes == ("damping raised 4 times, to 0.01",)


def test_progress_counts_blocks_and_the_head(model: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    compress_to(
        tmp_path / "store",
        model,
        decompose=RANKS | {"lm_head": True, "scaling": "fisher"},
        progress=lambda *call: calls.append(call),
    )
    assert calls == [
        *(("Fisher information", done, 4) for done in (1, 2, 3, 4)),
        *(("compressing", done, 3) for done in (1, 2, 3)),
    ]


def test_the_same_job_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    one = compress_to(tmp_path / "one", model, decompose=RANKS, quantize=RTN)
    two = compress_to(tmp_path / "two", model, decompose=RANKS, quantize=RTN)
    assert hashes(one.folder) == hashes(two.folder)


def test_a_finished_store_is_not_touched_again(model: Path, tmp_path: Path) -> None:
    store = compress_to(tmp_path / "store", model, decompose=RANKS)
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    times = [path.stat().st_mtime_ns for path in files]
    calls: list[int] = []
    compress_to(
        tmp_path / "store", model, decompose=RANKS, progress=lambda *call: calls.append(call[1])
    )
    assert calls == []
    assert [path.stat().st_mtime_ns for path in files] == times


def test_a_head_left_dense_needs_no_statistics_of_its_own(model: Path, tmp_path: Path) -> None:
    store = compress_to(
        tmp_path / "store", model, decompose={"ranks": {"up_proj": 4}, "lm_head": True}
    )
    assert store.layer("lm_head").record.form == "dense"
    assert store.blocks() == [0, 1, None]
