"""Stores of any architecture, and what the checkpoint tests do with an artefact."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from asvd_q import __version__
from asvd_q.artefact import METADATA_FILE, Exporter
from asvd_q.evaluation.torch_runner import TorchRunner
from asvd_q.metrics import relative_error
from asvd_q.models import SourceModel
from asvd_q.models.assemble import assemble
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import LayerPlan, Plan, QuantSpec, Slot
from asvd_q.quantization import TORCH_TYPES, FloatWeight, StoredWeight, float_type_of, quantize
from asvd_q.records import LayerRecord
from asvd_q.search.planning import plan_layer
from asvd_q.store import Store, StoredLayer, StoreHeader

TOKENS = torch.arange(40).reshape(2, 20) * 7 % 61 + 3

Choice = tuple[int | None, Mapping[Slot, QuantSpec]]
"""Rank (None: dense), and the slots that are quantized."""


def family(folder: Path, name: str, **options: Any) -> SourceModel:
    """A random model of any architecture of transformers, on disk."""
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**options))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return SourceModel.open(str(folder))


def store_of(
    folder: Path,
    source: SourceModel,
    choose: Callable[[str], Choice],
    *,
    embedding: QuantSpec | None = None,
) -> Store:
    """A finished store over every linear layer, by plain SVD and `quantize`.

    Args:
        embedding: codes of the embedding; None leaves it out of the plan.
    """
    plans: list[LayerPlan] = []
    weights: dict[str, dict[Slot, StoredWeight]] = {}
    float_type = float_type_of(source.dtype)
    for ref in build_skeleton(source).by_name.values():
        if ref.role == "embedding":
            if embedding is not None:
                plans.append(plan_layer(ref, {"weight": embedding}, None, float_type))
                weights[ref.name] = {"weight": quantize(source.matrix(ref), embedding)}
            continue
        rank, specs = choose(ref.name)
        tied = source.resolve(ref.tensor_name) is None
        if tied and rank is None:
            continue
        slots: tuple[Slot, ...] = ("weight",) if rank is None else ("B", "A")
        plan = LayerPlan(
            name=ref.name,
            kind=ref.kind,
            block=ref.block,
            shape=ref.shape,
            transposed=ref.transposed,
            form="dense" if rank is None else "factors",
            rank=rank,
            quantization={slot: specs.get(slot) for slot in slots},
        )
        plans.append(plan)
        if not plan.changed:
            continue
        stored = source.tensor("model.embed_tokens.weight" if tied else ref.tensor_name)
        matrices = _matrices(ref.take(stored).double(), rank)
        weights[ref.name] = {}
        for slot, matrix in matrices.items():
            spec = plan.quantization[slot]
            weights[ref.name][slot] = (
                FloatWeight(matrix.to(TORCH_TYPES[float_type]).contiguous())
                if spec is None
                else quantize(matrix, spec)
            )
    plan_of_all = Plan(float_type=float_type, layers=tuple(plans))
    header = StoreHeader(key="test", asvd_q=__version__, source=source.identity, plan=plan_of_all)
    store = Store.create(folder, header, source)
    for block in store.blocks():
        store.write_block(
            block,
            [
                StoredLayer(_record(plan), weights.get(plan.name, {}))
                for plan in plans
                if plan.part == block
            ],
        )
    return Store.open(folder, source)


def some(
    spec: QuantSpec, *, rank: int | None = 32
) -> Callable[[str, tuple[int, int]], tuple[int | None, QuantSpec]]:
    """For `hand_made_store`: factors for gate, q and o, dense codes for the others."""

    def choose(name: str, shape: tuple[int, int]) -> tuple[int | None, QuantSpec]:
        factorised = name.endswith(("gate_proj", "q_proj", "o_proj"))
        return (rank if factorised else None, spec)

    return choose


def config_of(folder: Path) -> dict[str, Any]:
    """Content of a checkpoint's `config.json`."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def export(exporter: Exporter, store: Store, folder: Path) -> Path:
    """Write the artefact and the metadata that the pipeline would put beside it."""
    folder.mkdir(parents=True)
    exporter.write(store, folder)
    metadata = store.metadata(exporter.name)
    (folder / METADATA_FILE).write_text(metadata.model_dump_json())
    return folder


def assert_reads_back(exporter: Exporter, store: Store, folder: Path) -> None:
    """Every matrix in the files is the store's, to the last bit."""
    seen = []
    for name, matrices in exporter.read(folder):
        seen.append(name)
        layer = store.layer(name)
        assert set(matrices) == set(layer.weights)
        for slot, weight in layer.weights.items():
            assert matrices[slot].dtype == torch.float32
            assert torch.equal(matrices[slot], weight.dequantize()), (name, slot)
    assert seen == [record.name for record in store.records()]


def reference_logits(store: Store, tokens: Tensor = TOKENS) -> Tensor:
    """Logits of the store's dequantized weights in float32."""
    model = assemble(
        build_skeleton(store.source).model,
        "",
        store.source,
        store.replaced,
        device="cpu",
        dtype=torch.float32,
    )
    assert isinstance(model, transformers.PreTrainedModel)
    return next(TorchRunner(model, "reference").score([tokens]))


def assert_runs(exporter: Exporter, store: Store, folder: Path, within: float) -> None:
    """The artefact's own runtime agrees with the store, at once and token by token."""
    runner = exporter.open(folder)
    expected = reference_logits(store)
    assert relative_error(expected, next(iter(runner.score([TOKENS])))) < within
    logits, cache = runner.forward(TOKENS[:, :12])
    parts = [logits]
    for position in range(12, TOKENS.shape[1]):
        logits, cache = runner.forward(TOKENS[:, position : position + 1], cache)
        parts.append(logits)
    assert relative_error(expected, torch.cat(parts, dim=1)) < within


def _matrices(weight: Tensor, rank: int | None) -> dict[Slot, Tensor]:
    if rank is None:
        return {"weight": weight}
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return {"B": root[:, None] * vt[:rank], "A": u[:, :rank] * root}


def _record(plan: LayerPlan) -> LayerRecord:
    return LayerRecord(
        name=plan.name,
        kind=plan.kind,
        block=plan.block,
        shape=plan.shape,
        transposed=plan.transposed,
        role=plan.role,
        tied=plan.tied,
        form=plan.form,
        rank=plan.rank,
        reason=None,
        quantization=plan.quantization,
        bytes_before=0,
        bytes_after=0,
        errors={},
        error_basis="weight",
    )
