"""The quantization settings that a GPTQ-format checkpoint carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asvd_q import __version__
from asvd_q_exporters._checkpoint import MODULES
from asvd_q_exporters.gptq.refusals import common_spec

if TYPE_CHECKING:
    from asvd_q.models import SourceModel
    from asvd_q.plan import Plan, QuantSpec

__all__ = ["quantization_config"]

_INT4_GROUPS = (32, 64, 128)
"""Groups of torch's int4 kernel for the CPU, which must also divide the input channels."""


def quantization_config(plan: Plan, source: SourceModel) -> dict[str, Any]:
    """Content of `quantize_config.json` and of `quantization_config` in `config.json`."""
    spec = common_spec(plan)
    assert spec is not None
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": spec.bits,
        "group_size": spec.group_size,
        "sym": spec.symmetric,
        "desc_act": _act_order(plan),
        "act_group_aware": False,
        "checkpoint_format": "gptq" if spec.symmetric else "gptq_v2",
        "pack_dtype": "int32",
        "lm_head": False,
        "meta": {"quantizer": [f"asvd-q:{__version__}"]},
    }
    if _needs_portable_kernel(plan, spec):
        config["backend"] = "torch"
    listed = _listed_modules(plan, source)
    if listed is not None:
        config["modules_in_block_to_quantize"] = [listed]
    return config


def _act_order(plan: Plan) -> bool:
    """Whether the columns of any matrix are grouped in another order than they stand."""
    return any(
        spec.permutes(columns)
        for layer in plan
        for slot, (_, columns) in layer.slot_shapes().items()
        if (spec := layer.quantization[slot]) is not None
    )


def _needs_portable_kernel(plan: Plan, spec: QuantSpec) -> bool:
    """Whether gptqmodel's own choice of kernel would fail on a CPU.

    At 4 bits it takes torch's int4 kernels without looking at the shape: they raise for groups
    that do not divide a matrix's input channels and for groups of 16, and the one that it takes
    for one group per output channel is silently wrong for asymmetric codes (gptqmodel 7.6.0).
    """
    if spec.bits != 4 or spec.group_size == 256:
        return False
    return spec.group_size not in _INT4_GROUPS or any(
        columns % spec.group_size
        for layer in plan
        for slot, (_, columns) in layer.slot_shapes().items()
        if layer.quantization[slot] is not None
    )


def _listed_modules(plan: Plan, source: SourceModel) -> list[str] | None:
    """Names of the quantized modules; None when every linear layer of the blocks is one.

    Loaders compare ends of names. Names within a block do where all blocks are alike; otherwise
    each name begins with that of the list of blocks and the block's index.
    """
    quantized: dict[int, list[str]] = {}
    covered: set[str] = set()
    blocks = "", ""
    for layer in plan:
        if layer.block is None:
            continue
        parts = layer.name.split(".")
        at = parts.index(str(layer.block))
        blocks = ".".join(parts[:at]), parts[at - 1]
        names = [
            ".".join(parts[at + 1 :]) + MODULES[slot]
            for slot in layer.slot_shapes()
            if layer.quantization[slot] is not None
        ]
        quantized.setdefault(layer.block, []).extend(names)
        if len(names) == len(layer.quantization):
            covered.add(layer.name)
    inside = _block_matrices(source, blocks[0])
    if covered >= inside:
        return None
    first = next(iter(quantized.values()))
    alike = all(names == first for names in quantized.values())
    if alike and len(quantized) == source.config.get_text_config().num_hidden_layers:
        return first
    return [f"{blocks[1]}.{block}.{name}" for block, names in quantized.items() for name in names]


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
