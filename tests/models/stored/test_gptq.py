"""GPTQ checkpoints that GPTQModel made, against what it dequantizes them to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asvd_q.errors import ModelError
from asvd_q.models import SourceModel
from tests.models.stored.makers import WEIGHTS, by_gptqmodel, edit, tiny_gpt2, with_tokenizer

LAYER = "model.layers.1.mlp.down_proj"
Made = tuple[Path, dict[str, torch.Tensor]]

SETTINGS: dict[str, dict[str, Any]] = {
    "v1": {"bits": 4, "group_size": 32},
    "v1-act-order": {"bits": 8, "group_size": -1, "desc_act": True, "act_group_aware": False},
    "v1-asymmetric": {"bits": 2, "group_size": 32, "sym": False, "format": "gptq"},
    "v1-asymmetric-3": {"bits": 3, "group_size": 32, "sym": False, "format": "gptq"},
    "v2-act-order": {
        "bits": 3,
        "group_size": 32,
        "sym": False,
        "desc_act": True,
        "act_group_aware": False,
        "format": "gptq_v2",
    },
    "dynamic": {
        "bits": 4,
        "group_size": 32,
        "dynamic": {r"-:.*q_proj": {}, r"+:.*down_proj": {"bits": 8, "group_size": 32}},
    },
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def plain(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("gptq") / "v1"
    return folder, by_gptqmodel(llama, folder, **SETTINGS["v1"])


@pytest.fixture
def folder(plain: Made, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(plain[0], tmp_path / "copy")


def assert_same(source: SourceModel, reference: dict[str, torch.Tensor]) -> None:
    assert source.codes is not None
    assert source.codes.method == "gptq"
    assert source.codes.layers == len(reference)
    for name, weight in reference.items():
        found = source.tensor(f"{name}.weight")
        assert found.dtype == torch.float16
        assert torch.equal(found, weight), name
        info = source.tensors[f"{name}.weight"]
        assert (info.shape, info.dtype) == (tuple(weight.shape), "F16")
    assert not any(
        name.endswith(("qweight", "qzeros", "scales", "g_idx")) for name in source.tensors
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_weights_are_those_that_gptqmodel_computes(kind: str, llama: Path, tmp_path: Path) -> None:
    reference = by_gptqmodel(llama, tmp_path / kind, **SETTINGS[kind])
    source = SourceModel.open(str(tmp_path / kind))
    assert_same(source, reference)
    assert source.codes is not None
    assert source.codes.bits == ((4, 8) if kind == "dynamic" else (SETTINGS[kind]["bits"],))
    assert len(reference) == (12 if kind == "dynamic" else 14)
    assert set(source.tensors) == set(SourceModel.open(str(llama)).tensors)
    if kind == "dynamic":  # a layer that it skipped
        kept = source.tensor("model.layers.0.self_attn.q_proj.weight")
        before = SourceModel.open(str(llama)).tensor("model.layers.0.self_attn.q_proj.weight")
        assert torch.equal(kept, before.to(kept.dtype))


@pytest.mark.slow
def test_layers_that_the_model_keeps_transposed(tmp_path: Path) -> None:
    model = tiny_gpt2(tmp_path / "model")
    reference = by_gptqmodel(model, tmp_path / "codes", bits=4, group_size=32)
    source, dense = SourceModel.open(str(tmp_path / "codes")), SourceModel.open(str(model))
    assert len(reference) == 8
    for name, weight in reference.items():
        assert torch.equal(source.tensor(f"{name}.weight"), weight.T), name
    shapes = {name: info.shape for name, info in source.tensors.items()}
    assert {name: info.shape for name, info in dense.tensors.items()} == shapes


def test_a_plain_checkpoint(plain: Made, llama: Path) -> None:
    source = SourceModel.open(str(plain[0]))
    assert_same(source, plain[1])
    dense = SourceModel.open(str(llama))
    assert set(source.tensors) == set(dense.tensors)
    assert source.rounded_to(torch.float32).tensor(f"{LAYER}.weight").dtype == torch.float32
    assert not hasattr(source.config, "quantization_config")
    assert "quantization_config" not in source.config_fields
    assert type(source.config) is type(dense.config)


def test_without_g_idx(folder: Path, plain: Made) -> None:
    names = load_file(folder / WEIGHTS)
    edit(folder, {name: None for name in names if name.endswith("g_idx")})
    assert_same(SourceModel.open(str(folder)), plain[1])


def test_settings_in_a_file_of_their_own(folder: Path, plain: Made) -> None:
    """As AutoGPTQ saved them: nothing in config.json, no method and no layout."""
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    assert_same(SourceModel.open(str(folder)), plain[1])


def test_the_layout_is_part_of_the_identity(folder: Path, plain: Made) -> None:
    """The same bytes stand for other weights in the other layout."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(config))
    one, two = SourceModel.open(str(plain[0])), SourceModel.open(str(folder))
    assert one.identity.weights_sha256 != two.identity.weights_sha256
    scales = load_file(folder / WEIGHTS)[f"{LAYER}.scales"]
    shift = two.tensor(f"{LAYER}.weight").float() - one.tensor(f"{LAYER}.weight").float()
    assert torch.allclose(shift, scales.repeat_interleave(32, 0).T.float(), rtol=1e-2)


def missing(suffix: str) -> dict[str, torch.Tensor | None]:
    return {f"{LAYER}.{suffix}": None}


DAMAGE: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "no-scales": (missing("scales"), "has no scales to its qweight"),
    "no-qzeros": (missing("qzeros"), "has no qzeros to its qweight"),
    "short": (
        {f"{LAYER}.qweight": torch.zeros(11, 64, dtype=torch.int32)},
        r"qweight \(11, 64\), .* are not those of one matrix",
    ),
    "narrow": ({f"{LAYER}.scales": torch.ones(3, 63).half()}, "are not those of one matrix"),
    "flat": ({f"{LAYER}.scales": torch.ones(192).half()}, "scales no matrix of floats"),
    "empty": ({f"{LAYER}.scales": torch.ones(0, 64).half()}, "scales no matrix of floats"),
    "wide-words": (
        {f"{LAYER}.qweight": torch.zeros(12, 64, dtype=torch.int64)},
        "are not int32 matrices",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_missing_or_does_not_fit_is_named(kind: str, folder: Path) -> None:
    changes, message = DAMAGE[kind]
    edit(folder, changes)
    with pytest.raises(ModelError, match=message) as caught:
        SourceModel.open(str(folder))
    assert str(caught.value).startswith(f"{folder / WEIGHTS}: {LAYER}")
    assert "\n" not in str(caught.value)


def test_groups_that_are_not_there(folder: Path) -> None:
    edit(folder, {f"{LAYER}.g_idx": torch.full((96,), 3, dtype=torch.int32)})
    source = SourceModel.open(str(folder))
    with pytest.raises(ModelError, match=f"{LAYER}: g_idx points outside its 3 groups"):
        source.tensor(f"{LAYER}.weight")


@pytest.mark.parametrize("change", [{"checkpoint_format": "gptq_p"}, {"is_marlin_format": True}])
def test_layouts_of_single_kernels_are_refused(change: dict[str, Any], folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"in the layout (gptq_p|marlin), .* start from the unq"):
        SourceModel.open(str(folder))
