"""Other packages' own quantization of whole models, each run as its users run it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asvd_q.files import folder_bytes
from asvd_q.plan import QuantSpec, store_bytes
from asvd_q.process import quiet
from asvd_q.quantization.nf4 import Nf4Weight
from benchmarks._compressions import Case, CasePoint
from benchmarks.common import Bench, Compressed

__all__ = ["PEERS", "Peer"]


@dataclass(frozen=True)
class _Found:
    """What a package made of a model.

    Attributes:
        weights: float32 (out, in) by layer: what the stored bytes stand for.
        specs: how each of them is stored.
        disk_bytes: of all files it saved.
    """

    weights: Mapping[str, Tensor]
    specs: Mapping[str, QuantSpec]
    disk_bytes: int


@dataclass(frozen=True)
class Peer:
    """A package.

    Attributes:
        methods: method and width of the codes that it is measured with.
        run: quantizes a model and saves it in a folder; (bench, case, group size, folder).
    """

    methods: tuple[tuple[str, int], ...]
    run: Callable[[Bench, Case, int, Path], _Found]

    def measure(self, bench: Bench, case: Case, group_size: int) -> CasePoint:
        """Quantize with the package, count what it stored, and evaluate what that stands for."""
        with tempfile.TemporaryDirectory() as folder:
            found = self.run(bench, case, group_size, Path(folder))
        plan = bench.plan({"decompose": {"kept_ratio": 1.0}})
        layers = sum(
            store_bytes(layer.shape, found.specs[layer.name], plan.float_type) for layer in plan
        )
        compressed = Compressed(
            kept_ratio=1.0,
            layer_bytes=layers,
            total_bytes=layers + plan.other_bytes,
            perplexity=bench.perplexities(
                lambda name: {"weight": found.weights[name]} if name in found.weights else None
            ),
        )
        point = CasePoint.of(case, compressed, bench)
        return point.model_copy(update={"disk_bytes": found.disk_bytes})


def _bitsandbytes(bench: Bench, case: Case, group_size: int, folder: Path) -> _Found:
    """transformers' `load_in_4bit`, saved before any forward pass; blocks of 64, its default."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            bench.source.path, quantization_config=config, device_map="cpu"
        )
        model.save_pretrained(folder)
    spec = QuantSpec(method="nf4", group_size=64)
    weights = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            stored = Nf4Weight(
                packed=module.weight.data,
                absmax=state.absmax,
                shape=tuple(state.shape),
                spec=spec,
                nested_absmax=None,
                nested_quant_map=None,
                nested_offset=None,
            )
            weights[name] = stored.dequantize()
    return _Found(weights, dict.fromkeys(weights, spec), folder_bytes(folder))


def _gptqmodel(bench: Bench, case: Case, group_size: int, folder: Path) -> _Found:
    """gptqmodel's quantization of the whole model, its defaults but for bits and group size."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    windows = bench.calibration(case.calibration)
    examples = [
        {"input_ids": window.tolist(), "attention_mask": [1] * len(window)} for window in windows
    ]
    with quiet():
        from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

        config = QuantizeConfig(bits=case.bits, group_size=group_size)
        model = GPTQModel.load(str(bench.source.path), config, device="cpu")
        model.quantize(examples, batch_size=1)
        model.save(str(folder))
        del model
        saved = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH)
        weights = _dequantized(saved.model)
    spec = QuantSpec(method="gptq", bits=case.bits, group_size=group_size)
    return _Found(weights, dict.fromkeys(weights, spec), folder_bytes(folder))


def _dequantized(model: Any) -> dict[str, Tensor]:
    return {
        name: module.dequantize_weight().T.float().contiguous()
        for name, module in model.named_modules()
        if hasattr(module, "dequantize_weight")
    }


PEERS: dict[str, Peer] = {
    "bitsandbytes": Peer((("nf4", 4),), _bitsandbytes),
    "gptqmodel": Peer((("gptq", 8), ("gptq", 4), ("gptq", 3), ("gptq", 2)), _gptqmodel),
}
