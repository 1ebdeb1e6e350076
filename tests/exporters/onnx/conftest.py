"""Exports that most tests share: all kinds of codes, floats and a tied head, NF4 in odd shapes,
and codes in standard operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec
from asvd_q.store import Store
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions
from tests.quantization.nf4_reference import nf4
from tests.support import Choice, hand_made_store, tiny_llama

KINDS: dict[str, Choice] = {
    # attention, in = 64
    "0.q_proj": (None, QuantSpec(bits=4, group_size=32)),
    "0.k_proj": (None, QuantSpec(bits=8, group_size=16, symmetric=False)),
    "0.v_proj": (24, QuantSpec(bits=4, group_size=16, symmetric=False)),
    "0.o_proj": (24, QuantSpec(bits=3, group_size=32, symmetric=False)),
    "1.q_proj": (None, QuantSpec(bits=2, group_size=16, symmetric=False)),
    "1.k_proj": (None, None),
    "1.v_proj": (24, None),
    "1.o_proj": (None, QuantSpec(bits=6, group_size=64)),
    # feed-forward, in = 64 and 96
    "0.gate_proj": (None, QuantSpec(bits=3, group_size=-1)),
    "0.up_proj": (None, QuantSpec(bits=5, group_size=128, symmetric=False)),
    "0.down_proj": (None, QuantSpec(bits=4, group_size=64, symmetric=False)),
    "1.gate_proj": (24, QuantSpec(bits=8, group_size=32)),
    "1.up_proj": (40, QuantSpec(bits=2, group_size=32)),
    "1.down_proj": (40, QuantSpec(bits=7, group_size=-1, symmetric=False)),
}

STANDARD_KINDS = KINDS | {
    "0.v_proj": (32, QuantSpec(bits=4, group_size=16, symmetric=False)),
    "0.up_proj": (40, QuantSpec(bits=5, group_size=-1, symmetric=False)),
    "1.up_proj": (48, QuantSpec(bits=2, group_size=32)),  # of which 48 columns have one and a half
}
"""Without groups that leave a short block at the end of a row."""

NF4_KINDS: dict[str, Choice] = {
    # attention, in = 36, out = 36 or 18
    "0.q_proj": (None, nf4(32)),
    "0.k_proj": (None, nf4(64, double=True)),
    "0.v_proj": (7, nf4(32)),
    "0.o_proj": (7, nf4(64, double=True)),
    "1.q_proj": (7, QuantSpec(bits=4, group_size=32)),
    "1.k_proj": (None, None),
    "1.v_proj": (7, None),
    "1.o_proj": (None, QuantSpec(bits=8, group_size=16)),
    # feed-forward, 35 wide: an odd number of weights, rows that no block divides
    "0.gate_proj": (None, nf4(128)),
    "0.up_proj": (None, nf4(256, double=True)),
    "0.down_proj": (None, nf4(64)),
    "1.gate_proj": (21, nf4(32)),
    "1.up_proj": (21, nf4(128, double=True)),
    "1.down_proj": (7, nf4(256)),
}


@dataclass(frozen=True)
class Export:
    store: Store
    exporter: OnnxExporter
    folder: Path


def choose(kinds: dict[str, Choice]) -> Callable[[str, tuple[int, int]], Choice]:
    def choice(name: str, shape: tuple[int, int]) -> Choice:
        parts = name.split(".")
        return kinds[f"{parts[2]}.{parts[-1]}"]

    return choice


def export(store: Store, folder: Path, options: OnnxOptions) -> Export:
    folder.mkdir()
    exporter = OnnxExporter(options)
    exporter.write(store, folder)
    metadata = store.metadata("onnx", options.model_dump())
    (folder / "asvd_q.json").write_text(metadata.model_dump_json())
    return Export(store, exporter, folder)


@pytest.fixture(scope="session")
def mixed_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("mixed")
    source = SourceModel.open(str(tiny_llama(folder / "model", attention_bias=True)))
    return hand_made_store(folder / "store", source, choose(KINDS))


@pytest.fixture(scope="session")
def mixed(mixed_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Every kind of matrix, biases, an untied head; computed in float32."""
    folder = tmp_path_factory.mktemp("mixed_onnx") / "onnx"
    return export(mixed_store, folder, OnnxOptions(accuracy_level=0))


@pytest.fixture(scope="session")
def standard_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("standard")
    source = SourceModel.open(str(tiny_llama(folder / "model", attention_bias=True)))
    return hand_made_store(folder / "store", source, choose(STANDARD_KINDS))


@pytest.fixture(scope="session")
def standard(standard_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Every kind of integer codes in standard operators; computed in float32."""
    folder = tmp_path_factory.mktemp("standard_onnx") / "onnx"
    return export(standard_store, folder, OnnxOptions(operators="standard", accuracy_level=0))


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Floating point, dense and low-rank, a tied head, weights outside the graph."""
    folder = tmp_path_factory.mktemp("tied")
    source = SourceModel.open(str(tiny_llama(folder / "model", tied=True)))
    store = hand_made_store(
        folder / "store", source, lambda name, _: (24 if ".0." in name else None, None)
    )
    return export(store, folder / "onnx", OnnxOptions(external_data=True))


@pytest.fixture(scope="session")
def nf4_export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """NF4 beside other kinds, on matrices of odd sizes; computed in float32."""
    folder = tmp_path_factory.mktemp("nf4")
    sizes = {"hidden": 36, "intermediate": 35, "heads": 2, "kv_heads": 1}
    source = SourceModel.open(str(tiny_llama(folder / "model", attention_bias=True, **sizes)))
    # For odd sizes bitsandbytes compiles its way, which takes seconds and changes nothing.
    with torch.compiler.set_stance("force_eager"):
        store = hand_made_store(folder / "store", source, choose(NF4_KINDS))
    return export(store, folder / "onnx", OnnxOptions(accuracy_level=0))
