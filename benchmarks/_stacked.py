"""Other packages' quantization of a checkpoint of floating-point factors.

Each takes the checkpoint as its users would, saves what it makes, and what is evaluated is what
the saved files stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from asvd_q.models.assemble import Replaced
from asvd_q.plan import Slot
from asvd_q.process import quiet
from asvd_q.store import Store
from asvd_q_exporters.gptq.unpack import unpack_matrix
from benchmarks._elsewhere import run_elsewhere
from benchmarks._peers import bitsandbytes_nf4, gptqmodel_codes

__all__ = ["BITS", "LLM_COMPRESSOR", "STACKED", "Request", "over_store", "weight_bytes"]

_ENDS: Mapping[Slot, str] = {"weight": "", "B": ".BLinear", "A": ".ALinear"}

BITS = 4
LLM_COMPRESSOR = f"llm-compressor GPTQ {BITS}"


@dataclass(frozen=True)
class Request:
    """What a package is asked for.

    Attributes:
        checkpoint: floating-point factors, as the `transformers` exporter writes them.
        folder: where the result goes; empty.
        texts: calibration windows, `input_ids` and `attention_mask`.
        group_size: of `BITS`-bit codes; NF4 keeps its own blocks.
        llmcompressor_python: an interpreter that has llm-compressor.
    """

    checkpoint: Path
    folder: Path
    texts: list[dict[str, list[int]]]
    group_size: int
    llmcompressor_python: Path | None = None


def _bitsandbytes(asked: Request) -> dict[str, Tensor]:
    with quiet():
        import asvd_q.integrations.transformers  # noqa: F401
    return bitsandbytes_nf4(asked.checkpoint, asked.folder)


def _gptqmodel(asked: Request) -> dict[str, Tensor]:
    return gptqmodel_codes(
        asked.checkpoint, asked.folder, asked.texts, bits=BITS, group_size=asked.group_size
    )


def _optimum(asked: Request) -> dict[str, Tensor]:
    """optimum's `GPTQQuantizer`: A after B here too, since it goes through layers one by one."""
    with quiet():
        import asvd_q.integrations.gptqmodel  # noqa: F401  which computes for optimum

    with quiet():
        from optimum.gptq import GPTQQuantizer
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(asked.checkpoint, dtype="auto")
        batches = [{key: [value] for key, value in text.items()} for text in asked.texts]
        quantizer = GPTQQuantizer(bits=BITS, group_size=asked.group_size, dataset=batches)
        model = quantizer.quantize_model(model, AutoTokenizer.from_pretrained(asked.checkpoint))
        quantizer.save(model, str(asked.folder))
    return _gptq_matrices(asked.folder)


def _llmcompressor(asked: Request) -> dict[str, Tensor]:
    """llm-compressor's GPTQ, whose Hessian of A is of what the unquantized B gives it."""
    assert asked.llmcompressor_python is not None
    texts = asked.folder / "texts.json"
    texts.write_text(json.dumps([text["input_ids"] for text in asked.texts]))
    script = Path(__file__).with_name("_llmcompressor.py")
    arguments = (asked.checkpoint, asked.folder, texts, BITS, asked.group_size)
    run_elsewhere([asked.llmcompressor_python, script, *arguments], "llm-compressor")
    with quiet():
        from transformers import AutoModelForCausalLM, CompressedTensorsConfig

        import asvd_q.integrations.transformers  # noqa: F401

        model = AutoModelForCausalLM.from_pretrained(
            asked.folder, quantization_config=CompressedTensorsConfig(run_compressed=False)
        )
    packed = _modules(_tensors(asked.folder), "weight_packed")
    return {name: model.get_submodule(name).weight.detach().float() for name in packed}


STACKED: Mapping[str, Callable[[Request], dict[str, Tensor]]] = {
    "bitsandbytes NF4": _bitsandbytes,
    f"gptqmodel GPTQ {BITS}": _gptqmodel,
    f"optimum GPTQ {BITS}": _optimum,
    LLM_COMPRESSOR: _llmcompressor,
}
"""A package with its method → what it makes: float32 (out, in) by module."""


def over_store(weights: Mapping[str, Tensor], store: Store) -> Replaced:
    """The store's layers with other matrices in place of all of theirs.

    Args:
        weights: (out, in) by module: of every dense layer, and every `BLinear` and `ALinear`.

    Raises:
        ValueError: a matrix of the store's is left out, which would be evaluated as it was, or
            there is one that the store has not.
    """
    modules: dict[str, dict[Slot, str]] = {
        record.name: {slot: record.name + _ENDS[slot] for slot in record.slot_shapes()}
        for record in store.records()
        if record.block is not None
    }
    known = {module for slots in modules.values() for module in slots.values()}
    for module in sorted(known ^ weights.keys()):
        raise ValueError(
            f"{module} has no codes" if module in known else f"{module} is none of the store's"
        )

    def replaced(name: str) -> Mapping[Slot, Tensor] | None:
        found = {slot: weights[module] for slot, module in modules.get(name, {}).items()}
        return found or store.replaced(name)

    return replaced


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files of a checkpoint."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _gptq_matrices(folder: Path) -> dict[str, Tensor]:
    """Every matrix of a GPTQ-format checkpoint of version 1, float32 (out, in) by module."""
    tensors = _tensors(folder)
    parts = ("qweight", "qzeros", "scales", "g_idx")
    return {
        module: torch.from_numpy(
            unpack_matrix({part: tensors[f"{module}.{part}"].numpy() for part in parts}, BITS, 1)
        ).contiguous()
        for module in _modules(tensors, "qweight")
    }


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint's weight files."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _modules(tensors: Mapping[str, Tensor], suffix: str) -> list[str]:
    """Modules that have a tensor of that name."""
    return [name.removesuffix(f".{suffix}") for name in tensors if name.endswith(f".{suffix}")]
