"""Low-rank adapters beside quantized layers, in the files that PEFT and other packages write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from asvd_q.plan import store_bytes
from asvd_q.quantization import float_type_of

__all__ = ["Adapter", "read_adapters"]

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """A·B beside the codes of one layer, as saved.

    Attributes:
        a: (out, rank).
        b: (rank, in), applied first.
    """

    a: Tensor
    b: Tensor

    @property
    def product(self) -> Tensor:
        """float32 (out, in): what it adds to the weight."""
        return self.a.float() @ self.b.float()

    @property
    def stored_bytes(self) -> int:
        """Bytes of both matrices in the type that they were saved in."""
        return sum(
            store_bytes((matrix.shape[0], matrix.shape[1]), None, float_type_of(matrix.dtype))
            for matrix in (self.a, self.b)
        )


def read_adapters(folder: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Adapter]:
    """The adapters of all layers from a folder in PEFT's format.

    The names there are the other way round: its `lora_A` (rank, in) is applied first. Keys are
    compared without regard to case, since gptqmodel writes them in lower case.

    Args:
        shapes: (out, in) by layer, each of which has an adapter in the folder.

    Raises:
        ValueError: a layer without an adapter or one without a layer, matrices that do not fit,
            or a scale on the product (`lora_alpha` other than `r`), which loaders read differently.
    """
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    if config["lora_alpha"] != config["r"]:
        raise ValueError(
            f"{folder / _CONFIG}: lora_alpha {config['lora_alpha']} differs from r {config['r']}"
        )
    path = folder / _TENSORS
    tensors = {key.lower(): tensor for key, tensor in load_file(path).items()}
    found = {}
    for name, shape in shapes.items():
        key = f"{_PREFIX}{name}".lower()
        b, a = (tensors.pop(f"{key}.lora_{side}.weight", None) for side in "ab")
        if a is None or b is None:
            raise ValueError(f"{path}: no adapter of {name}")
        if (a.shape[0], b.shape[1]) != shape or a.shape[1] != b.shape[0]:
            raise ValueError(
                f"{path}: {tuple(a.shape)} times {tuple(b.shape)} does not fit {name} {shape}"
            )
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise ValueError(f"{path}: the adapter of {name} is not finite")
        found[name] = Adapter(a, b)
    if tensors:
        raise ValueError(f"{path}: {min(tensors)} belongs to no layer that was quantized")
    return found
