"""Other packages' own quantization of whole models, each run as its users run it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asvd_q.files import folder_bytes
from asvd_q.plan import FloatType, QuantSpec, store_bytes
from asvd_q.process import quiet
from asvd_q.quantization.nf4 import Nf4Weight
from benchmarks._adapters import Adapter, read_adapters
from benchmarks._compressions import Case, CasePoint
from benchmarks.common import Bench, Compressed

__all__ = [
    "PEERS",
    "Coding",
    "Found",
    "Peer",
    "bitsandbytes_nf4",
    "examples",
    "gptqmodel_codes",
]

_NF4 = QuantSpec(method="nf4", group_size=64)


class Coding(NamedTuple):
    """What a package is asked for: method and width of the codes, rank of what is beside them."""

    method: str
    bits: int
    rank: int | None = None


@dataclass(frozen=True)
class Found:
    """What a package made of a model.

    Attributes:
        weights: float32 (out, in) by layer: what the stored codes stand for.
        specs: how each of them is stored.
        disk_bytes: of all files it saved.
        adapters: by layer, where the package saved some.
    """

    weights: Mapping[str, Tensor]
    specs: Mapping[str, QuantSpec]
    disk_bytes: int
    adapters: Mapping[str, Adapter] = field(default_factory=dict)

    def layer_bytes(self, name: str, shape: tuple[int, int], float_type: FloatType) -> int:
        """Bytes of one layer (out, in), its adapter included."""
        codes = store_bytes(shape, self.specs[name], float_type)
        return codes + (self.adapters[name].stored_bytes if name in self.adapters else 0)

    def replaced(self, name: str) -> dict[str, Tensor] | None:
        """The weight in effect, codes and adapter together; None leaves the source's."""
        if name not in self.weights:
            return None
        weight = self.weights[name]
        if name in self.adapters:
            weight = weight + self.adapters[name].product
        return {"weight": weight}


@dataclass(frozen=True)
class Peer:
    """A package.

    Attributes:
        methods: what it is measured with.
        run: quantizes a model and saves it in a folder; (bench, case, group size, folder).
    """

    methods: tuple[Coding, ...]
    run: Callable[[Bench, Case, int, Path], Found]

    def measure(self, bench: Bench, case: Case, group_size: int) -> CasePoint:
        """Quantize with the package, count what it stored, and evaluate what that stands for."""
        with tempfile.TemporaryDirectory() as folder:
            found = self.run(bench, case, group_size, Path(folder))
        plan = bench.plan({"decompose": {"kept_ratio": 1.0}})
        layers = sum(found.layer_bytes(layer.name, layer.shape, plan.float_type) for layer in plan)
        compressed = Compressed(
            kept_ratio=1.0,
            layer_bytes=layers,
            total_bytes=layers + plan.other_bytes,
            perplexity=bench.perplexities(found.replaced),
        )
        point = CasePoint.of(case, compressed, bench)
        return point.model_copy(update={"disk_bytes": found.disk_bytes})


def bitsandbytes_nf4(model: Path, folder: Path) -> dict[str, Tensor]:
    """transformers' `load_in_4bit`, saved before any forward pass; blocks of 64, its default.

    Args:
        model: what is quantized.
        folder: where the result goes.

    Returns:
        float32 (out, in) by module: what the codes in the folder stand for.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    with quiet():
        AutoModelForCausalLM.from_pretrained(
            model, quantization_config=config, device_map="cpu"
        ).save_pretrained(folder)
        saved = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    weights = {}
    for name, module in saved.named_modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            stored = Nf4Weight(
                packed=module.weight.data,
                absmax=state.absmax,
                shape=tuple(state.shape),
                spec=_NF4,
                nested_absmax=None,
                nested_quant_map=None,
                nested_offset=None,
            )
            weights[name] = stored.dequantize()
    return weights


def gptqmodel_codes(
    model: Path, folder: Path, texts: list[dict[str, list[int]]], *, bits: int, group_size: int
) -> dict[str, Tensor]:
    """gptqmodel's quantization of a model, its defaults but for bits and group size.

    Args:
        model: what is quantized.
        folder: where the result goes.
        texts: see `examples`.

    Returns:
        float32 (out, in) by module: what the codes in the folder stand for.
    """
    with quiet():
        import asvd_q.integrations.gptqmodel  # noqa: F401  first: it prepares the process too

    with quiet():
        from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

        config = QuantizeConfig(bits=bits, group_size=group_size)
        quantized = GPTQModel.load(str(model), config, device="cpu")
        quantized.quantize(texts, batch_size=1)
        quantized.save(str(folder))
        del quantized
        # By itself it takes bfloat16 on a CPU, to which it would round the float16 scales saved.
        saved = GPTQModel.load(
            str(folder), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16
        )
        return _dequantized(saved.model)


def examples(bench: Bench, corpora: Sequence[str] | None = None) -> list[dict[str, list[int]]]:
    """Calibration windows of the options (or of these corpora), as other packages take them."""
    return [
        {"input_ids": window.tolist(), "attention_mask": [1] * len(window)}
        for window in bench.calibration(corpora)
    ]


def _bitsandbytes(bench: Bench, case: Case, group_size: int, folder: Path) -> Found:
    weights = bitsandbytes_nf4(bench.source.path, folder)
    return Found(weights, dict.fromkeys(weights, _NF4), folder_bytes(folder))


def _gptqmodel(bench: Bench, case: Case, group_size: int, folder: Path) -> Found:
    assert case.bits is not None
    texts = examples(bench, case.calibration)
    weights = gptqmodel_codes(
        bench.source.path, folder, texts, bits=case.bits, group_size=group_size
    )
    spec = QuantSpec(method="gptq", bits=case.bits, group_size=group_size)
    return Found(weights, dict.fromkeys(weights, spec), folder_bytes(folder))


def _eora(bench: Bench, case: Case, group_size: int, folder: Path) -> Found:
    """gptqmodel's EoRA adapter for the model that it has quantized, as its README makes one.

    The same calibration windows serve both.

    Source: EoRA, arXiv 2410.21271.
    """
    codes, beside = folder / "codes", folder / "adapter"
    found = _gptqmodel(bench, case, group_size, codes)
    with quiet():
        from gptqmodel import GPTQModel
        from gptqmodel.adapter.adapter import Lora

        GPTQModel.adapter.generate(
            adapter=Lora(rank=case.rank, path=str(beside)),
            model_id_or_path=str(bench.source.path),
            quantized_model_id_or_path=str(codes),
            calibration_dataset=examples(bench, case.calibration),
            batch_size=1,
            device="cpu",
        )
    shapes = {name: (weight.shape[0], weight.shape[1]) for name, weight in found.weights.items()}
    return replace(found, adapters=read_adapters(beside, shapes), disk_bytes=folder_bytes(folder))


def _dequantized(model: Any) -> dict[str, Tensor]:
    return {
        name: module.dequantize_weight().T.float().contiguous()
        for name, module in model.named_modules()
        if hasattr(module, "dequantize_weight")
    }


PEERS: dict[str, Peer] = {
    "bitsandbytes": Peer((Coding("nf4", 4),), _bitsandbytes),
    "gptqmodel": Peer(tuple(Coding("gptq", bits) for bits in (8, 4, 3, 2)), _gptqmodel),
    # Rank 8 costs a layer 256 wide the bits per weight that 128 costs one of 4096.
    "gptqmodel + EoRA": Peer(
        tuple(Coding("gptq", bits, rank) for bits in (4, 3, 2) for rank in (64, 32, 16, 8)),
        _eora,
    ),
}
"""By the name that stands before a case's own."""
