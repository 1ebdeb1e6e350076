"""compressed-tensors checkpoints: bytes, our own runner, and stock transformers."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asvd_q.errors import ArtefactError, ExportError
from asvd_q.metrics import relative_error
from asvd_q.models import SourceModel
from asvd_q.plan import FloatType, QuantSpec, Slot
from asvd_q.store import Store
from asvd_q_exporters.compressed_tensors import (
    CompressedTensorsExporter,
    CompressedTensorsOptions,
)
from tests.exporters import corrections
from tests.exporters.apart import assert_opens_silently, run_apart
from tests.exporters.checkpoints import (
    TOKENS,
    Choice,
    assert_reads_back,
    assert_runs,
    export,
    family,
    reference_logits,
    store_of,
)
from tests.exporters.corrections import Corrected, corrected_store
from tests.models.test_modeling import FAMILIES
from tests.support import tiny_llama

pytest.importorskip("compressed_tensors")

EXACT = 1e-6
"""Relative logit error: the same float32 weights run in the same kernels."""

INT4 = QuantSpec(bits=4, group_size=32)


def llama(folder: Path, **options: Any) -> SourceModel:
    return SourceModel.open(str(tiny_llama(folder / "model", **options)))


def mixture() -> Any:
    """Every width of codes and several group sizes; every third layer becomes factors."""
    numbers = count()

    def choose(name: str) -> Choice:
        if name == "lm_head":
            return None, {}
        number = next(numbers)
        spec = QuantSpec(bits=2 + number % 7, group_size=(-1, 64, 16)[number % 3], clip="mse")
        finer = spec.model_copy(update={"bits": 8 - number % 5})
        slots: dict[Slot, QuantSpec] = {"weight": spec, "B": spec, "A": finer}
        return (12 if number % 3 == 1 else None), slots

    return choose


def every_form(name: str) -> corrections.Choice:
    """Corrections with and without codes of their own, plain codes, and a layer left alone."""
    kind = name.rsplit(".", 1)[-1]
    if kind == "q_proj":
        return Corrected(QuantSpec(bits=2, group_size=16), 8, b=INT4, a=QuantSpec(group_size=-1))
    if kind in ("k_proj", "v_proj"):
        return Corrected(QuantSpec(bits=3, group_size=32), 6, b=INT4, shares="kv")
    return None if kind == "up_proj" else INT4


def settings(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    found: dict[str, Any] = config["quantization_config"]
    return found


def assert_counts(store: Store, folder: Path) -> None:
    """What the format says it occupies is what lies in the file."""
    options = CompressedTensorsOptions(dtype=store.float_type)  # these plans predict no bytes
    exporter = CompressedTensorsExporter(options)
    tensors = load_file(folder / "model.safetensors")
    for layer in store.plan:
        found = sum(
            tensor.nbytes
            for name, tensor in tensors.items()
            if name.startswith(f"{layer.name}.") and not name.endswith(".bias")
        )
        assert exporter.stored_bytes(layer) == found, layer.name


@pytest.mark.parametrize(
    "options",
    [
        {"attention_bias": True, "dtype": torch.bfloat16},
        {"tied": True, "dtype": torch.float16},
        {"intermediate": 80},  # whole groups of 64 leave a rest
    ],
)
def test_mixtures_are_written_read_and_run(tmp_path: Path, options: dict[str, Any]) -> None:
    store = store_of(tmp_path / "store", llama(tmp_path, **options), mixture())
    exporter = CompressedTensorsExporter()
    assert exporter.can_express(store.plan) == []
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_counts(store, folder)
    assert_runs(exporter, store, folder, EXACT)
    groups = settings(folder)["config_groups"].values()
    assert len({(one["weights"]["num_bits"], one["weights"]["group_size"]) for one in groups}) > 7
    predicted = exporter.artefact_bytes(store.plan, store.source)
    files = {**predicted.weights, **predicted.others}
    written = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files == {name: size for name, size in written.items() if name != "asvd_q.json"}


def test_corrections_are_written_read_and_run(tmp_path: Path) -> None:
    """The library's wrapper around a linear layer calls our layer's own forward."""
    store = corrected_store(tmp_path / "store", llama(tmp_path, attention_bias=True), every_form)
    exporter = CompressedTensorsExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_counts(store, folder)
    assert_runs(exporter, store, folder, EXACT)
    names = set(load_file(folder / "model.safetensors"))
    q = "model.layers.1.self_attn.q_proj"
    assert {f"{q}{m}.weight_packed" for m in ("", ".BLinear", ".ALinear")} <= names
    assert "model.layers.1.self_attn.k_proj.ALinear.weight" in names


@pytest.mark.parametrize(
    ("name", "options"), [FAMILIES[-1], FAMILIES[-2], FAMILIES[2], FAMILIES[4], FAMILIES[5]]
)
def test_other_families(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Conv1D weights, biases, fused projections, other names for the blocks."""
    source = family(tmp_path / "model", name, **options)
    forms = mixture()

    def choose(layer: str) -> Choice:
        rank, slots = forms(layer)
        return (12 if slots and name.startswith("GPT2") else rank), slots

    store = store_of(tmp_path / "store", source, choose)
    exporter = CompressedTensorsExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, EXACT)


def test_a_quantized_head(tmp_path: Path) -> None:
    def choose(name: str) -> Choice:
        return (16 if name.endswith("down_proj") else None), {"weight": INT4, "A": INT4}

    store = store_of(tmp_path / "store", llama(tmp_path), choose)
    assert store.plan.layer("lm_head").changed
    exporter = CompressedTensorsExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, EXACT)


@pytest.mark.parametrize(("dtype", "within"), [("float16", 1e-2), ("bfloat16", 5e-2)])
def test_coarser_types(tmp_path: Path, dtype: FloatType, within: float) -> None:
    store = store_of(tmp_path / "store", llama(tmp_path, dtype=torch.bfloat16), mixture())
    exporter = CompressedTensorsExporter(CompressedTensorsOptions(compute_dtype=dtype))
    folder = export(exporter, store, tmp_path / "out")
    assert_runs(exporter, store, folder, within)
    assert (
        load_file(folder / "model.safetensors")[
            "model.layers.0.self_attn.q_proj.weight_scale"
        ].dtype
        == torch.float16
    )


def test_quantization_alone_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    """As other tools write it: one group for all linear layers, and a list of the others."""

    def choose(name: str) -> Choice:
        whole = name.endswith(("lm_head", "o_proj"))
        return None, {} if whole else {"weight": INT4}

    store = store_of(tmp_path / "store", llama(tmp_path), choose)
    exporter = CompressedTensorsExporter()
    folder = export(exporter, store, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert not config.keys() & {"auto_map", "truncation_ranks"}
    assert not list(folder.glob("*.py"))
    (group,) = settings(folder)["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert group["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 32,
        "dynamic": False,
    }
    outputs = "|".join(rf"layers\.{block}\.self_attn\.o_proj" for block in range(2))
    assert settings(folder)["ignore"] == ["lm_head", rf"re:(?:model\.)?(?:{outputs})$"]
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, EXACT)


def test_two_exports_give_the_same_bytes(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", llama(tmp_path), mixture())
    first = export(CompressedTensorsExporter(), store, tmp_path / "first")
    second = export(CompressedTensorsExporter(), store, tmp_path / "second")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    assert len(list(first.iterdir())) == len(list(second.iterdir()))


def test_what_cannot_be_expressed_is_not_written(tmp_path: Path) -> None:
    def choose(name: str) -> Choice:
        return None, {"weight": QuantSpec(bits=4, symmetric=False)}

    store = store_of(tmp_path / "store", llama(tmp_path), choose)
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="symmetric: true"):
        CompressedTensorsExporter().write(store, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_artefact_is_an_artefact_error(tmp_path: Path) -> None:
    exporter = CompressedTensorsExporter()
    with pytest.raises(ArtefactError, match="no safetensors file"):
        list(exporter.read(tmp_path))
    store = store_of(tmp_path / "store", llama(tmp_path), mixture())
    folder = export(exporter, store, tmp_path / "out")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"symmetric": true', '"symmetric": false'))
    with pytest.raises(ArtefactError, match="not packed symmetric"):
        list(exporter.read(folder))
    (folder / "config.json").write_text(config)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9000])
    with pytest.raises(ArtefactError):
        list(exporter.read(folder))
    with pytest.raises(ArtefactError):
        exporter.open(folder)


STOCK = """
from transformers import AutoModel, AutoModelForCausalLM

for name, (folder, trust) in jobs.items():
    options = {"trust_remote_code": trust, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    packed = {type(m).__name__ for m in model.modules() if hasattr(m, "weight_packed")}
    with torch.inference_mode():
        logits = model(tokens).logits
        headless = AutoModel.from_pretrained(folder, **options)(tokens).last_hidden_state
        found[name] = (logits, model.lm_head(headless), packed, type(model).__name__)
"""


@pytest.mark.slow
def test_loaders_without_this_package(tmp_path: Path) -> None:
    """Stock transformers, in a process that cannot import ours; with and without the head."""
    stores = {
        "mixture": store_of(tmp_path / "1", llama(tmp_path / "a"), mixture()),
        "every form": corrected_store(tmp_path / "2", llama(tmp_path / "b"), every_form),
        "ordinary": corrected_store(tmp_path / "3", llama(tmp_path / "c"), lambda name: INT4),
    }
    jobs = {}
    for name, store in stores.items():
        folder = export(CompressedTensorsExporter(), store, tmp_path / name)
        (folder / "asvd_q.json").unlink()
        jobs[name] = (str(folder), name != "ordinary")
    found = run_apart(STOCK, jobs, TOKENS, tmp_path)
    for name, store in stores.items():
        logits, headless, packed, kind = found[name]
        assert relative_error(reference_logits(store), logits) < EXACT
        assert torch.equal(logits, headless)
        assert packed == (
            {"Linear", "CodedCorrectedLinear"} if name == "every form" else {"Linear"}
        )
        assert kind == ("LlamaForCausalLM" if name == "ordinary" else "AsvdQLlamaForCausalLM")


@pytest.mark.slow
def test_opening_is_silent(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", llama(tmp_path), mixture())
    folder = export(CompressedTensorsExporter(), store, tmp_path / "out")
    assert_opens_silently("compressed-tensors", folder)
