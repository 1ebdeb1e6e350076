"""NF4 checkpoints: bytes, our own runner, and transformers without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from asvd_q.artefact import METADATA_FILE
from asvd_q.errors import ArtefactError, ExportError
from asvd_q.metrics import relative_error
from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec, Slot
from asvd_q.store import Store
from asvd_q_exporters.bitsandbytes import BitsAndBytesExporter, BitsAndBytesOptions
from tests.exporters.apart import assert_opens_silently, run_apart
from tests.exporters.checkpoints import (
    TOKENS,
    assert_reads_back,
    assert_runs,
    config_of,
    export,
    family,
    reference_logits,
    some,
    store_of,
)
from tests.models.test_modeling import FAMILIES
from tests.support import Choice, hand_made_store, tiny_llama

pytest.importorskip("bitsandbytes")

NF4 = QuantSpec(method="nf4", group_size=32)
WIDE = QuantSpec(method="nf4", group_size=64, double_quant=True)
STATE = "weight.quant_state.bitsandbytes__nf4"
WITHIN = 1e-5
"""Relative logit error of our own runner, in which torch multiplies the dequantized weights."""


def partly(name: str, shape: tuple[int, int]) -> Choice:
    """Codes of two kinds, float factors and float layers in one model."""
    choices: dict[str, Choice] = {
        "q_proj": (32, NF4),
        "k_proj": (24, None),
        "v_proj": (None, WIDE),
        "up_proj": (None, NF4),
        "gate_proj": (64, WIDE),
    }
    return choices.get(name.rsplit(".", 1)[-1], (None, None))


def make(folder: Path, choose: Any, **options: Any) -> Store:
    path = tiny_llama(folder / "model", hidden=128, intermediate=192, **options)
    return hand_made_store(folder / "store", SourceModel.open(str(path)), choose)


@pytest.mark.parametrize(
    ("choose", "options"),
    [
        (some(NF4, rank=64), {"attention_bias": True, "dtype": torch.bfloat16}),
        (some(WIDE, rank=64), {"tied": True}),
        (some(QuantSpec(method="nf4", group_size=64), rank=None), {"dtype": torch.float16}),
        (partly, {"attention_bias": True, "dtype": torch.bfloat16}),
    ],
)
def test_checkpoints_are_written_read_and_run(
    tmp_path: Path, choose: Any, options: dict[str, Any]
) -> None:
    store = make(tmp_path, choose, **options)
    exporter = BitsAndBytesExporter()
    assert exporter.can_express(store.plan) == []
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)
    tensors = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in tensors) is not options.get("tied", False)
    counting = BitsAndBytesExporter(BitsAndBytesOptions(dtype=store.float_type))
    for layer in store.plan:
        found = sum(
            tensor.nbytes
            for name, tensor in tensors.items()
            if name.startswith(f"{layer.name}.") and not name.endswith(".bias")
        )
        assert counting.stored_bytes(layer) == found
    predicted = exporter.artefact_bytes(store.finished_plan, store.source)
    assert {**predicted.weights, **predicted.others} == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.name != METADATA_FILE
    }
    config = config_of(folder)
    assert config.get("truncation_ranks", {}) == store.plan.ranks
    assert config["quantization_config"]["bnb_4bit_compute_dtype"] == store.float_type


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_file_is_the_one_that_transformers_saves(
    tmp_path: Path, dtype: str, double: bool
) -> None:
    """Tensor for tensor and byte for byte, but for blanks in the JSON of double quantization."""
    spec = QuantSpec(method="nf4", group_size=64, double_quant=double)
    torch_dtype = getattr(torch, dtype)
    store = make(tmp_path, some(spec, rank=None), attention_bias=True, dtype=torch_dtype)
    folder = export(BitsAndBytesExporter(), store, tmp_path / "out")
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch_dtype,
        bnb_4bit_use_double_quant=double,
        llm_int8_skip_modules=["lm_head"],
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=settings, dtype=torch_dtype
    )
    theirs.save_pretrained(tmp_path / "theirs")
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        ours = found[name]
        if double and name.endswith(STATE):
            assert bytes(ours.tolist()).rstrip() == bytes(tensor.tolist())
            continue
        assert ours.dtype == tensor.dtype, name
        assert torch.equal(ours, tensor), name
    config, saved = config_of(folder), config_of(tmp_path / "theirs")
    assert config["quantization_config"] == saved["quantization_config"]
    assert config["architectures"] == saved["architectures"]


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_every_family(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Conv1D weights, biases, fused projections; several kinds of codes in one model."""
    wide: dict[str, int] = {
        key: 64 for key in ("hidden_size", "n_embd", "word_embed_proj_dim") if key in options
    }
    if "head_dim" in options:
        wide |= {"num_key_value_heads": 4, "head_dim": 16}
    source = family(tmp_path / "model", name, **(options | wide))
    choices: list[tuple[int | None, dict[Slot, QuantSpec]]] = [
        (32, {"B": NF4, "A": NF4}),
        (None, {"weight": WIDE}),
        (64, {"B": WIDE}),
        (None, {"weight": NF4}),
        (None, {}),
        (13, {}),
    ]
    count = iter(range(1000))

    def choose(layer: str) -> tuple[int | None, dict[Slot, QuantSpec]]:
        return (None, {}) if layer == "lm_head" else choices[next(count) % len(choices)]

    store = store_of(tmp_path / "store", source, choose)
    exporter = BitsAndBytesExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)


def test_quantized_layers_become_those_of_bitsandbytes_and_no_other(tmp_path: Path) -> None:
    store = make(tmp_path, partly)
    exporter = BitsAndBytesExporter()
    folder = export(exporter, store, tmp_path / "out")
    settings = config_of(folder)["quantization_config"]
    assert settings["bnb_4bit_use_double_quant"] is True
    skipped = settings["llm_int8_skip_modules"]
    assert {"lm_head", "model.layers.1.mlp.down_proj", "layers.1.mlp.down_proj"} < set(skipped)
    assert "model.layers.0.self_attn.k_proj.BLinear" in skipped
    assert len(skipped) == len(set(skipped)) == 1 + 2 * 2 * 4
    model = exporter.open(folder).model
    kinds = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    modules: dict[Slot, str] = {"weight": "", "B": ".BLinear", "A": ".ALinear"}
    expected = {"lm_head": "Linear"} | {
        layer.name + modules[slot]: "Linear" if spec is None else "Linear4bit"
        for layer in store.plan
        for slot, spec in layer.quantization.items()
    }
    assert kinds == expected


@pytest.mark.parametrize("tied", [False, True])
def test_a_quantized_head(tmp_path: Path, tied: bool) -> None:
    """One that is tied in the source becomes a matrix of its own."""
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", tied=tied)))
    store = store_of(
        tmp_path / "store",
        source,
        lambda name: (
            (32 if tied else None, {"weight": NF4, "A": NF4, "B": NF4})
            if name == "lm_head"
            else (None, {})
        ),
    )
    exporter = BitsAndBytesExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)


def test_another_float_type(tmp_path: Path) -> None:
    store = make(tmp_path, partly)
    exporter = BitsAndBytesExporter(BitsAndBytesOptions(dtype="float16", compute_dtype="float16"))
    folder = export(exporter, store, tmp_path / "out")
    for name, matrices in exporter.read(folder):
        for slot, weight in store.layer(name).weights.items():
            coded = store.layer(name).record.quantization[slot] is not None
            expected = weight.dequantize(torch.float32 if coded else torch.float16)
            assert torch.equal(matrices[slot], expected.float())
    assert_runs(exporter, store, folder, 1e-2)


def test_two_exports_give_the_same_bytes(tmp_path: Path) -> None:
    store = make(tmp_path, partly)
    first, second = (
        {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        for folder in (
            export(BitsAndBytesExporter(), store, tmp_path / name) for name in ("one", "two")
        )
    )
    assert first == second


def test_what_cannot_be_expressed_is_not_written(tmp_path: Path) -> None:
    store = make(tmp_path, some(NF4, rank=24))
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"layers\.0\.self_attn\.q_proj.*rank_multiple 32"):
        BitsAndBytesExporter().write(store, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_layer_that_transformers_keeps_in_float_is_not_written_as_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path, some(NF4, rank=64))
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_keep_in_fp32_modules", ["up_proj"])
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"layers\.0\.mlp\.up_proj: transformers would keep"):
        BitsAndBytesExporter().write(store, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_damaged_artefacts_are_artefact_errors(tmp_path: Path) -> None:
    exporter = BitsAndBytesExporter()
    with pytest.raises(ArtefactError, match="no safetensors"):
        list(exporter.read(tmp_path))
    folder = export(exporter, make(tmp_path, some(NF4, rank=64)), tmp_path / "out")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content.replace(b'"quant_type": "nf4"', b'"quant_type": "fp4"', 1))
    with pytest.raises(ArtefactError, match=r"damaged at .*: not NF4"):
        list(exporter.read(folder))
    weights.write_bytes(content[:-9000])
    with pytest.raises(ArtefactError):
        list(exporter.read(folder))
    with pytest.raises(ArtefactError):
        exporter.open(folder)


STOCK = """
from transformers import AutoModel, AutoModelForCausalLM

for name, (folder, trust) in jobs.items():
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
    with torch.inference_mode():
        logits = model(input_ids=tokens).logits
    headless = AutoModel.from_pretrained(folder, trust_remote_code=trust)
    with torch.inference_mode():
        again = model.lm_head(headless(input_ids=tokens).last_hidden_state)
    kinds = {type(m).__name__ for m in model.modules()}
    found[name] = (logits.float(), again.float(), kinds, type(model).__name__)
"""


@pytest.mark.slow
def test_transformers_without_this_package(tmp_path: Path) -> None:
    """On CPUs with AVX512-BF16 its layers compute in bfloat16, whatever the checkpoint says."""
    cases: dict[str, tuple[Any, bool, torch.dtype]] = {
        # name: (choice, trust_remote_code, type)
        "factors": (some(NF4, rank=64), True, torch.float32),
        "partly": (partly, True, torch.bfloat16),
        "ordinary": (some(WIDE, rank=None), False, torch.float32),
    }
    jobs, expected = {}, {}
    for name, (choose, trust, dtype) in cases.items():
        store = make(tmp_path / name, choose, attention_bias=True, dtype=dtype)
        folder = export(BitsAndBytesExporter(), store, tmp_path / name / "out")
        (folder / "asvd_q.json").unlink()
        jobs[name] = (str(folder), trust)
        expected[name] = reference_logits(store)
    found = run_apart(STOCK, jobs, TOKENS, tmp_path)
    for name, (_, trust, _) in cases.items():
        logits, again, kinds, kind = found[name]
        assert relative_error(expected[name], logits) < 5e-2, name
        assert relative_error(logits, again) < 5e-2, name
        assert "Linear4bit" in kinds
        assert kind == ("AsvdQLlamaForCausalLM" if trust else "LlamaForCausalLM")


@pytest.mark.slow
def test_opening_is_silent(tmp_path: Path) -> None:
    folder = export(BitsAndBytesExporter(), make(tmp_path, some(NF4, rank=64)), tmp_path / "out")
    assert_opens_silently("bitsandbytes", folder)
