"""Checkpoints that other packages make, and what they themselves take their weights for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asvd_q.process import quiet
from tests.support import WREN, tiny_llama

__all__ = [
    "WEIGHTS",
    "by_bitsandbytes",
    "by_compressed_tensors",
    "by_gptqmodel",
    "edit",
    "factorised",
    "tiny_gpt2",
    "with_tokenizer",
]

WEIGHTS = "model.safetensors"

Reference = dict[str, Tensor]
"""Layer → weight (out, in), as the package that made the codes dequantizes them."""


def with_tokenizer(folder: Path) -> Path:
    """A tiny Llama with wren's vocabulary: some of the packages want to read its tokenizer."""
    tiny_llama(folder, hidden=64, intermediate=96, vocabulary=8192)
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def tiny_gpt2(folder: Path) -> Path:
    """Linear layers that are kept as (in, out), square ones among them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8192,
        n_positions=128,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def by_gptqmodel(model: Path, folder: Path, **settings: Any) -> Reference:
    """Quantize with GPTQModel, save, load again, and let it dequantize."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    with quiet():
        from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

        quantized = GPTQModel.load(str(model), QuantizeConfig(**settings), device="cpu")
        generator = torch.Generator().manual_seed(0)
        windows = torch.randint(0, 8000, (8, 32), generator=generator).tolist()
        quantized.quantize(
            [{"input_ids": window, "attention_mask": [1] * 32} for window in windows],
            batch_size=1,
        )
        quantized.save(str(folder))
        loaded = GPTQModel.load(
            str(folder), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16
        )
    return {
        name: module.dequantize_weight().T
        for name, module in loaded.model.named_modules()
        if hasattr(module, "dequantize_weight")
    }


def by_bitsandbytes(
    model: Path, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any
) -> Reference:
    """Quantize and save with transformers, and let bitsandbytes dequantize.

    Its kernel for the CPU is wrong where a row is no whole number of blocks, so that the matrix
    is given to it as one row.
    """
    with quiet():
        import bitsandbytes.functional as functional
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        quantized = AutoModelForCausalLM.from_pretrained(
            model, quantization_config=BitsAndBytesConfig(**settings), device_map="cpu", dtype=dtype
        )
        quantized.save_pretrained(folder)
    found: Reference = {}
    for name, module in quantized.named_modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            shape, state.shape = state.shape, (1, state.shape.numel())
            found[name] = functional.dequantize_4bit(module.weight.data, state).reshape(shape)
        elif type(module).__name__ == "Linear8bitLt":
            rows = module.weight.SCB
            found[name] = functional.int8_vectorwise_dequant(module.weight.data, rows).half()
    return found


def by_compressed_tensors(
    model: Path, folder: Path, dtype: torch.dtype, **weights: Any
) -> Reference:
    """Choose scales, compress, save and decompress with compressed-tensors."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    with quiet():
        quantized = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        scheme = {"targets": ["Linear"], "weights": {"type": "int", **weights}}
        config = QuantizationConfig(
            config_groups={"all": scheme}, ignore=["lm_head"], format="pack-quantized"
        )
        apply_quantization_config(quantized, config)
        layers = {
            name: module
            for name, module in quantized.named_modules()
            if hasattr(module, "weight_scale")
        }
        for module in layers.values():
            rows, columns = module.weight.shape
            groups = module.weight.data.float().reshape(
                rows, -1, weights.get("group_size", columns)
            )
            scale, zero = calculate_qparams(
                groups.amin(-1), groups.amax(-1), module.quantization_scheme.weights
            )
            module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))
        compressor = ModelCompressor.from_pretrained_model(quantized)
        compressor.compress_model(quantized)
        quantized.save_pretrained(folder)
        compressor.update_config(folder)
        compressor.decompress_model(quantized)
    return {name: module.weight.data for name, module in layers.items()}


def factorised(model: Path, folder: Path, rank: int, leave: str = "k_proj") -> Reference:
    """A folder as the authors of ASVD publish them: factors in float16, code of their own.

    Args:
        leave: kind of layer that stays dense.

    Returns:
        The products, float64.
    """
    shutil.copytree(model, folder)
    stored = load_file(folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    transposed = config["model_type"] == "gpt2"
    found, tensors, ranks = {}, dict(stored), {}
    for name, weight in stored.items():
        layer, _, leaf = name.rpartition(".")
        inside = ".layers." in name or ".h." in name
        if leaf != "weight" or weight.ndim != 2 or not inside or layer.endswith(leave):
            continue
        matrix = weight.T if transposed else weight
        u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
        root = s[:rank].sqrt()
        first, second = (u[:, :rank] * root).half(), (root[:, None] * vt[:rank]).half()
        del tensors[name]
        tensors[f"{layer}.ALinear.weight"] = first.contiguous()
        tensors[f"{layer}.BLinear.weight"] = second.contiguous()
        if f"{layer}.bias" in tensors:
            tensors[f"{layer}.ALinear.bias"] = tensors.pop(f"{layer}.bias")
        found[layer], ranks[layer] = first.double() @ second.double(), rank
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, folder / WEIGHTS, metadata={"format": "pt"})
    stem = f"asvd_{config['model_type']}"
    config |= {
        "architectures": ["ASVDForCausalLM"],
        "auto_map": {
            "AutoConfig": f"configuration_{stem}.ASVDConfig",
            "AutoModelForCausalLM": f"modeling_{stem}.ASVDForCausalLM",
        },
        "truncation_ranks": ranks,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for kind in ("configuration", "modeling"):
        (folder / f"{kind}_{stem}.py").write_text("raise SystemExit('this code must not run')\n")
    return found


def edit(folder: Path, changes: Mapping[str, Tensor | None]) -> None:
    """Replace tensors of a folder's only weight file; None removes one."""
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
