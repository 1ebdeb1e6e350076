"""The quantization settings that a GPTQ-format checkpoint carries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from asvd_q import __version__
from asvd_q_exporters._options import MODULES
from asvd_q_exporters.gptq.kernels import aten_fails
from asvd_q_exporters.gptq.rules import dynamic_rules
from asvd_q_exporters.gptq.settings import Matrix, Setting, common, matrices, settings_of

if TYPE_CHECKING:
    from asvd_q.models import SourceModel
    from asvd_q.plan import Plan

__all__ = ["is_first_version", "quantization_config"]

_KNOWN_BLOCKS = {
    "gpt_neox.layers",
    "model.decoder.layers",
    "model.language_model.layers",
    "model.layers",
    "transformer.h",
}
"""Lists of blocks that optimum finds itself in a causal language model (its `BLOCK_PATTERNS`)."""


def quantization_config(plan: Plan, source: SourceModel) -> dict[str, Any]:
    """Content of `quantize_config.json` and of `quantization_config` in `config.json`.

    `dynamic` is for loaders that know it, such as GPTQModel's; transformers passes over it.

    Args:
        plan: with at least one quantized matrix.
    """
    settings = settings_of(plan)
    default = common(settings)
    assert default is not None
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": default.bits,
        "group_size": default.group_size,
        "sym": default.symmetric,
        "desc_act": any(_reordered(matrix) for matrix in matrices(plan)),
        "act_group_aware": False,
        "checkpoint_format": "gptq" if is_first_version(settings.values()) else "gptq_v2",
        "pack_dtype": "int32",
        "lm_head": False,
        "meta": {"quantizer": [f"asvd-q:{__version__}"]},
    }
    if any(aten_fails(matrix) for matrix in matrices(plan)):
        config["backend"] = "torch"
    blocks = _blocks_path(plan)
    if blocks not in _KNOWN_BLOCKS:
        config["block_name_to_quantize"] = blocks
    inside = _block_matrices(source, blocks)
    listed = _listed_modules(plan, source, inside)
    if listed is not None:
        config["modules_in_block_to_quantize"] = [listed]
    rules = dynamic_rules(settings, default, _floats(plan, inside))
    if rules:
        config["dynamic"] = rules
    return config


def is_first_version(settings: Iterable[Setting]) -> bool:
    """Whether all codes fit into the format's first version, which every loader reads.

    It stores zero points minus one, and has no place for one of 0, which asymmetric codes have.
    """
    return all(setting.symmetric for setting in settings)


def _reordered(matrix: Matrix) -> bool:
    """Whether its columns are grouped in another order than they stand."""
    return matrix.spec is not None and matrix.spec.permutes(matrix.shape[1])


def _blocks_path(plan: Plan) -> str:
    """Dotted path of the list of blocks."""
    layer = next(layer for layer in plan if layer.block is not None)
    parts = layer.name.split(".")
    return ".".join(parts[: parts.index(str(layer.block))])


def _floats(plan: Plan, inside: set[str]) -> list[str]:
    """Modules of the blocks whose weights stay in floating point."""
    known = {layer.name for layer in plan}
    inner = (layer for layer in plan if layer.block is not None)
    planned = [matrix.module for matrix in matrices(inner) if matrix.spec is None]
    return [*planned, *sorted(inside - known)]


def _listed_modules(plan: Plan, source: SourceModel, inside: set[str]) -> list[str] | None:
    """Names of the quantized modules; None when every linear layer of the blocks is one.

    Loaders compare ends of names. Names within a block do where all blocks are alike; otherwise
    each name begins with that of the list of blocks and the block's index.
    """
    quantized: dict[int, list[str]] = {}
    covered: set[str] = set()
    blocks = ""
    for layer in plan:
        if layer.block is None:
            continue
        parts = layer.name.split(".")
        at = parts.index(str(layer.block))
        blocks = parts[at - 1]
        names = [
            ".".join(parts[at + 1 :]) + MODULES[slot]
            for slot in layer.slot_shapes()
            if layer.quantization[slot] is not None
        ]
        quantized.setdefault(layer.block, []).extend(names)
        if len(names) == len(layer.quantization):
            covered.add(layer.name)
    if covered >= inside:
        return None
    first = next(iter(quantized.values()))
    alike = all(names == first for names in quantized.values())
    if alike and len(quantized) == source.config.get_text_config().num_hidden_layers:
        return first
    return [f"{blocks}.{block}.{name}" for block, names in quantized.items() for name in names]


def _block_matrices(source: SourceModel, prefix: str) -> set[str]:
    """Modules of the blocks that own a two-dimensional weight, by their names in the model."""
    short = prefix.partition(".")[2]  # as a file without the base model's prefix has it
    found = set()
    for name, info in source.tensors.items():
        path = name.removesuffix(".weight")
        if path == name or len(info.shape) != 2:
            continue
        if path.startswith(f"{prefix}."):
            found.add(path)
        elif short and path.startswith(f"{short}."):
            found.add(prefix.removesuffix(short) + path)
    return found
