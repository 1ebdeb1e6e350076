"""Sizes at the time of the plan: checkpoints to the byte, graphs to one percent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from asvd_q.artefact import Exporter, SizedExporter
from asvd_q.errors import ExportError
from asvd_q.exporter_registry import exporter_class
from asvd_q.models import SourceModel
from asvd_q.plan import LayerPlan, Plan, QuantSpec, Slot
from asvd_q.sizes import footprint, measured_footprint, predict_files
from asvd_q.store import Store
from asvd_q_exporters import _checkpoint
from asvd_q_exporters.bitsandbytes import BitsAndBytesExporter
from asvd_q_exporters.gptq import GptqExporter, GptqOptions
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions
from asvd_q_exporters.peft import PeftExporter, PeftOptions
from asvd_q_exporters.transformers import TransformersExporter, TransformersOptions
from tests.exporters.checkpoints import export, family, store_of
from tests.exporters.corrections import Choice, Corrected, corrected_store
from tests.exporters.sizes import assert_sizes
from tests.quantization.nf4_reference import nf4
from tests.support import WREN, hand_made_store, tiny_llama

INT4 = QuantSpec(bits=4, group_size=32)
INT3 = QuantSpec(bits=3, group_size=64, symmetric=False)


def dense(spec: QuantSpec | None) -> Callable[[str], Choice]:
    return lambda name: spec


def corrected(name: str) -> Choice:
    if name.endswith(("q_proj", "k_proj")):
        return Corrected(INT4, 16, shares="attention")
    return Corrected(INT4, 32) if name.endswith("down_proj") else INT4


def coded(name: str) -> Choice:
    return Corrected(nf4(64, double=True), 32, nf4(32), nf4(64)) if "_proj" in name else None


def factors(folder: Path, source: SourceModel, spec: QuantSpec | None, rank: int = 64) -> Store:
    """All layers but one in factors."""
    return hand_made_store(
        folder, source, lambda name, shape: (None if "v_proj" in name else rank, spec)
    )


def forms(folder: Path, form: str) -> Store:
    source = SourceModel.open(str(WREN))
    if form.startswith("factors"):
        specs = {"factors of codes": INT4, "factors of nf4": nf4(64, double=True)}
        return factors(folder, source, specs.get(form))
    choices = {
        "dense": dense(None),
        "codes": dense(INT4),
        "narrow codes": dense(INT3),
        "nf4": dense(nf4(64)),
        "correction": corrected,
        "coded correction": coded,
    }
    return corrected_store(folder, source, choices[form])


@pytest.mark.parametrize(
    ("form", "exporter"),
    [
        ("dense", TransformersExporter()),
        ("dense", TransformersExporter(TransformersOptions(dtype="float32"))),
        ("factors", TransformersExporter()),
        ("nf4", TransformersExporter(TransformersOptions(dequantize=True))),
        ("coded correction", TransformersExporter(TransformersOptions(dequantize=True))),
        ("nf4", BitsAndBytesExporter()),
        ("factors of nf4", BitsAndBytesExporter()),
        ("codes", GptqExporter()),
        ("narrow codes", GptqExporter(GptqOptions(dtype="float32"))),
        ("factors of codes", GptqExporter()),
        ("correction", PeftExporter()),
        ("correction", PeftExporter(PeftOptions(dtype="float32"))),
    ],
)
def test_checkpoints_of_the_bundled_model(tmp_path: Path, form: str, exporter: Exporter) -> None:
    store = forms(tmp_path / "store", form)
    folder = export(exporter, store, tmp_path / "out")
    assert_sizes(exporter, store, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("dense", OnnxOptions()),
        ("codes", OnnxOptions()),
        ("nf4", OnnxOptions(dtype="float16")),
        ("factors", OnnxOptions(dtype="float16", external_data=True)),
        ("factors of codes", OnnxOptions(dtype="float16")),
        ("coded correction", OnnxOptions(external_data=True)),
    ],
)
def test_graphs_of_the_bundled_model(tmp_path: Path, form: str, options: OnnxOptions) -> None:
    store = forms(tmp_path / "store", form)
    exporter = OnnxExporter(options)
    assert_sizes(exporter, store, export(exporter, store, tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96}),
        (
            "Phi3ForCausalLM",
            {
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "vocab_size": 96,
                "pad_token_id": 0,
            },
        ),
    ],
)
def test_other_families(tmp_path: Path, name: str, options: dict[str, int]) -> None:
    """Conv1D weights, biases, files without the base model's prefix, a tied head in factors."""
    source = family(tmp_path / "model", name, **options)
    slots: dict[Slot, QuantSpec] = {"weight": INT4, "A": INT4, "B": INT4}
    for spec, exporter in ((slots, GptqExporter()), ({}, TransformersExporter())):
        folder = tmp_path / exporter.name
        store = store_of(
            folder / "store",
            source,
            lambda layer, spec=spec: (None, {}) if layer == "lm_head" else (32, spec),
        )
        assert_sizes(exporter, store, export(exporter, store, folder / "out"))


def test_a_tied_head_that_is_changed(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", tied=True)))
    exporter = TransformersExporter()
    for rank in (None, 16):
        folder = tmp_path / str(rank)
        store = store_of(
            folder / "store", source, lambda layer, rank=rank: (rank if "head" in layer else 8, {})
        )
        assert_sizes(exporter, store, export(exporter, store, folder / "out"))


def test_several_weight_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    for name in ("write_checkpoint", "checkpoint_bytes"):
        smaller = partial(getattr(_checkpoint, name), shard_bytes=50_000)
        monkeypatch.setattr(_checkpoint, name, smaller)
    source = SourceModel.open(str(tiny_llama(tmp_path / "model")))
    store = factors(tmp_path / "store", source, None, rank=16)
    exporter = TransformersExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_sizes(exporter, store, folder)


def test_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = forms(tmp_path / "store", "correction")

    def refuse(self: SourceModel, name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(SourceModel, "tensor", refuse)
    for exporter in (PeftExporter(), TransformersExporter(TransformersOptions(dequantize=True))):
        assert isinstance(exporter, SizedExporter)
        assert predict_files(exporter, store.plan, store.source).weights


def test_what_cannot_be_written_is_said_at_the_plan() -> None:
    """One part of a larger parameter has no tensor of its own in a checkpoint."""
    layer = LayerPlan(
        name="model.layers.0.mlp.experts.0.up",
        kind="up",
        block=0,
        shape=(64, 64),
        quantization={"weight": INT4},
    )
    plan = Plan(float_type="bfloat16", layers=(layer,))
    with pytest.raises(ExportError, match=r"experts\.0\.up: is one part"):
        predict_files(GptqExporter(), plan, SourceModel.open(str(WREN)))


def test_without_a_prediction_of_its_own_the_matrices_are_added_up(tmp_path: Path) -> None:
    class Plain(exporter_class("transformers")):  # type: ignore[misc]
        artefact_bytes = None

        def __getattribute__(self, name: str) -> object:
            if name == "artefact_bytes":
                raise AttributeError(name)
            return super().__getattribute__(name)

    store = forms(tmp_path / "store", "factors")
    plan = store.plan.model_copy(update={"other_bytes": _rest(store)})
    exporter = Plain()
    folder = export(exporter, store, tmp_path / "out")
    predicted = predict_files(exporter, plan, store.source)
    found, real = footprint(predicted), measured_footprint(folder, predicted)
    assert abs(found.folder - real.folder) < 0.01 * real.folder


def _rest(store: Store) -> int:
    planned = sum(layer.shape[0] * layer.shape[1] for layer in store.plan)
    return 2 * (sum(info.numel for info in store.source.tensors.values()) - planned)
