"""GPTQ-format checkpoints: bytes, our own runner, and loaders that do not know this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asvd_q.errors import ArtefactError, ExportError, MissingExtraError
from asvd_q.metrics import relative_error
from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec, Slot
from asvd_q.store import Store
from asvd_q_exporters.gptq import GptqExporter
from asvd_q_exporters.gptq import exporter as exporter_module
from tests.exporters.checkpoints import (
    TOKENS,
    assert_reads_back,
    assert_runs,
    export,
    family,
    reference_logits,
    store_of,
)
from tests.models.test_modeling import FAMILIES
from tests.support import WREN, Choice, hand_made_store, tiny_llama

INT4 = QuantSpec(bits=4, group_size=32)
WITHIN = 5e-3
"""Relative logit error of gptqmodel's float32 path, whose products are rounded to float16."""


def some(spec: QuantSpec, *, rank: int | None = 32) -> Any:
    """Factors for gate, q and o, dense codes for the others."""

    def choose(name: str, shape: tuple[int, int]) -> Choice:
        factorised = name.endswith(("gate_proj", "q_proj", "o_proj"))
        return (rank if factorised else None, spec)

    return choose


def make(folder: Path, choose: Any, **options: Any) -> Store:
    source = SourceModel.open(str(tiny_llama(folder / "model", **options)))
    return hand_made_store(folder / "store", source, choose)


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (INT4, {"attention_bias": True, "dtype": torch.bfloat16}),
        (QuantSpec(bits=4, group_size=128), {"tied": True}),
        (QuantSpec(bits=4, group_size=-1, symmetric=False), {"attention_bias": True}),
        (QuantSpec(bits=3, group_size=64, symmetric=False), {"dtype": torch.float16}),
        (QuantSpec(bits=2, group_size=16), {}),
        (QuantSpec(bits=8, group_size=256, symmetric=False), {"tied": True}),
    ],
)
def test_checkpoints_are_written_read_and_run(
    tmp_path: Path, spec: QuantSpec, options: dict[str, Any]
) -> None:
    store = make(tmp_path, some(spec), **options)
    exporter = GptqExporter()
    assert exporter.can_express(store.plan) == []
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)
    tensors = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in tensors) is not options.get("tied", False)
    for layer in store.plan:
        found = sum(
            tensor.nbytes
            for name, tensor in tensors.items()
            if name.startswith(f"{layer.name}.") and not name.endswith(".bias")
        )
        assert exporter.stored_bytes(layer) == found
    config = config_of(folder)
    quantization = config["quantization_config"]
    assert quantization == json.loads((folder / "quantize_config.json").read_text())
    assert quantization["checkpoint_format"] == ("gptq" if spec.symmetric else "gptq_v2")
    assert quantization["sym"] is spec.symmetric
    assert "modules_in_block_to_quantize" not in quantization
    assert config["truncation_ranks"] == store.plan.ranks


def test_two_exports_give_the_same_bytes(tmp_path: Path) -> None:
    store = make(tmp_path, some(INT4))
    first = export(GptqExporter(), store, tmp_path / "first")
    second = export(GptqExporter(), store, tmp_path / "second")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    assert len(list(first.iterdir())) == len(list(second.iterdir()))


def test_quantization_alone_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    store = make(tmp_path, some(INT4, rank=None))
    folder = export(GptqExporter(), store, tmp_path / "out")
    config = config_of(folder)
    assert config["model_type"] == "llama"
    assert "auto_map" not in config
    assert "truncation_ranks" not in config
    assert not list(folder.glob("*.py"))
    assert "model.layers.0.mlp.up_proj.qweight" in load_file(folder / "model.safetensors")


def test_layers_that_stay_float_are_left_out_of_the_list(tmp_path: Path) -> None:
    store = make(
        tmp_path,
        lambda name, shape: (
            32 if name.endswith("q_proj") else None,
            INT4 if name.endswith(("q_proj", "up_proj")) else None,
        ),
    )
    exporter = GptqExporter()
    folder = export(exporter, store, tmp_path / "out")
    listed = config_of(folder)["quantization_config"]["modules_in_block_to_quantize"]
    assert listed == [["self_attn.q_proj.BLinear", "self_attn.q_proj.ALinear", "mlp.up_proj"]]
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)


def test_blocks_that_differ_are_listed_by_their_names(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", layers=3)))
    slots: dict[Slot, QuantSpec] = {"A": INT4}

    def choose(name: str) -> tuple[int | None, dict[Slot, QuantSpec]]:
        if name.endswith("1.mlp.up_proj"):
            return 32, slots
        return (None, {"weight": INT4}) if ".0." in name else (None, {})

    store = store_of(tmp_path / "store", source, choose)
    exporter = GptqExporter()
    folder = export(exporter, store, tmp_path / "out")
    (listed,) = config_of(folder)["quantization_config"]["modules_in_block_to_quantize"]
    assert "layers.0.self_attn.q_proj" in listed
    assert listed[-1] == "layers.1.mlp.up_proj.ALinear"
    assert len(listed) == 8
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)


@pytest.mark.parametrize(
    ("spec", "pinned"),
    [
        (INT4, False),
        (QuantSpec(bits=4, group_size=16), True),
        (QuantSpec(bits=4, group_size=64), True),  # 96 input channels of down are no multiple
        (QuantSpec(bits=4, group_size=-1), True),
        (QuantSpec(bits=4, group_size=256), False),
        (QuantSpec(bits=8, group_size=64), False),
    ],
)
def test_the_kernel_is_pinned_where_the_default_one_fails(
    tmp_path: Path, spec: QuantSpec, pinned: bool
) -> None:
    folder = export(GptqExporter(), make(tmp_path, some(spec)), tmp_path / "out")
    assert ("backend" in config_of(folder)["quantization_config"]) is pinned


@pytest.mark.parametrize(
    ("name", "options"), [FAMILIES[-1], FAMILIES[-2], FAMILIES[2], FAMILIES[4], FAMILIES[5]]
)
def test_other_families(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Conv1D weights, biases, fused projections, other names for the blocks."""
    wide: dict[str, int] = {
        key: 64 for key in ("hidden_size", "n_embd", "word_embed_proj_dim") if key in options
    }
    if "head_dim" in options:
        wide |= {"num_key_value_heads": 4, "head_dim": 16}
    source = family(tmp_path / "model", name, **(options | wide))
    count = iter(range(100))
    slots: dict[Slot, QuantSpec] = {"weight": INT4, "A": INT4, "B": INT4}

    def choose(layer: str) -> tuple[int | None, dict[Slot, QuantSpec]]:
        if layer == "lm_head":
            return None, {}
        return (32 if next(count) % 3 == 0 else None), slots

    store = store_of(tmp_path / "store", source, choose)
    exporter = GptqExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)


def test_act_order_is_declared(tmp_path: Path) -> None:
    from dataclasses import replace

    from asvd_q.quantization import QuantizedWeight
    from asvd_q.store import StoredLayer

    store = make(tmp_path, some(INT4))
    layer = store.layer("model.layers.0.mlp.down_proj")
    weight = layer.weights["weight"]
    assert isinstance(weight, QuantizedWeight)
    order = torch.randperm(weight.shape[1]).int()
    spec = QuantSpec(method="gptq", bits=4, group_size=32, act_order=True)
    record = layer.record.model_copy(update={"quantization": {"weight": spec}})
    changed = StoredLayer(record, {"weight": replace(weight, spec=spec, permutation=order)})
    others = [found for found in store.layers() if found.record.block == 0]
    store.write_block(
        0, [changed if other.record.name == layer.record.name else other for other in others]
    )
    exporter = GptqExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert config_of(folder)["quantization_config"]["desc_act"] is True
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)


def test_what_cannot_be_expressed_is_not_written(tmp_path: Path) -> None:
    store = make(tmp_path, some(INT4, rank=24))
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="rank_multiple 32"):
        GptqExporter().write(store, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_artefact_is_an_artefact_error(tmp_path: Path) -> None:
    exporter = GptqExporter()
    with pytest.raises(ArtefactError, match=r"quantize_config\.json"):
        list(exporter.read(tmp_path))
    folder = export(exporter, make(tmp_path, some(INT4)), tmp_path / "out")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9000])
    with pytest.raises(ArtefactError):
        list(exporter.read(folder))
    with pytest.raises(ArtefactError):
        exporter.open(folder)


def test_a_missing_runtime_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"asvd-q\[gptq\]"):
        GptqExporter().open(tmp_path)


STOCK = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("asvd_q", "asvd_q_exporters"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForCausalLM

jobs, out = json.loads(sys.argv[1]), sys.argv[2]
found = {}
for name, (folder, trust, dtype) in jobs.items():
    if dtype == "gptqmodel":
        from gptqmodel import GPTQModel
        model = GPTQModel.load(folder, device="cpu", backend="torch")
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, dtype=dtype)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor(json.loads(sys.argv[3]))).logits
    kinds = {type(m).__name__ for m in model.modules() if hasattr(m, "qweight")}
    found[name] = (logits.float(), kinds, type(model).__name__)
assert not any(name.split(".")[0] in ("asvd_q", "asvd_q_exporters") for name in sys.modules)
torch.save(found, out)
"""


def test_loaders_without_this_package(tmp_path: Path) -> None:
    """Stock transformers with optimum and gptqmodel, in a process that cannot import ours."""
    cases: dict[str, tuple[Any, QuantSpec, bool, str, float]] = {
        # name: (choice, spec, trust_remote_code, dtype, bound)
        "factors": (some(INT4), INT4, True, "float32", 2e-2),  # torch's int4 kernel is bf16
        "asymmetric": (
            some(QuantSpec(bits=4, group_size=-1, symmetric=False)),
            INT4,
            True,
            "float32",
            WITHIN,
        ),
        "three": (some(QuantSpec(bits=3, group_size=32)), INT4, True, "float32", WITHIN),
        "half": (some(QuantSpec(bits=8, group_size=128)), INT4, True, "auto", 5e-2),
        "partly": (
            lambda name, shape: (32, INT4) if name.endswith("v_proj") else (None, None),
            INT4,
            True,
            "float32",
            2e-2,
        ),
        "ordinary": (some(INT4, rank=None), INT4, False, "float32", 2e-2),
        "gptqmodel": (some(INT4, rank=None), INT4, False, "gptqmodel", 5e-2),
    }
    jobs, expected = {}, {}
    for name, (choose, _, trust, dtype, _) in cases.items():
        store = make(
            tmp_path / name,
            choose,
            attention_bias=True,
            dtype=torch.bfloat16 if dtype == "auto" else torch.float32,
        )
        folder = export(GptqExporter(), store, tmp_path / name / "out")
        (folder / "asvd_q.json").unlink()
        for file in WREN.glob("tokenizer*.json"):  # gptqmodel's own loader wants one
            shutil.copy(file, folder)
        jobs[name] = (str(folder), trust, dtype)
        expected[name] = reference_logits(store)
    environment = os.environ | {
        "GPTQMODEL_CPU_WORKERS": "2",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
        "TORCHDYNAMO_DISABLE": "1",  # compiling gptqmodel's kernels would take minutes
    }
    command = [sys.executable, "-c", STOCK, json.dumps(jobs), str(tmp_path / "logits.pt")]
    done = subprocess.run(
        [*command, json.dumps(TOKENS.tolist())],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "logits.pt")
    for name, (_, _, _, _, bound) in cases.items():
        logits, kinds, kind = found[name]
        assert relative_error(expected[name], logits) < bound, (name, kinds)
        assert kinds
        if name not in ("ordinary", "gptqmodel"):
            assert kind == "AsvdQLlamaForCausalLM"
    assert found["asymmetric"][1] == {"TorchLinear"}


@pytest.mark.slow
def test_opening_is_silent(tmp_path: Path) -> None:
    folder = export(GptqExporter(), make(tmp_path, some(INT4)), tmp_path / "out")
    code = (
        "import sys; from pathlib import Path; from asvd_q_exporters.gptq import GptqExporter;"
        "import torch; runner = GptqExporter().open(Path(sys.argv[1]));"
        "runner.forward(torch.tensor([[1, 2, 3]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
