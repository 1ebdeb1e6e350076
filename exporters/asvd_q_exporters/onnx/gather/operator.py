"""What `GatherBlockQuantized` can hold. Heavy modules are imported where they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asvd_q_exporters.onnx.nbits.operator import codes_refusal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asvd_q.artefact import Refusal
    from asvd_q.plan import LayerPlan, QuantSpec
    from asvd_q.quantization import StoredWeight

__all__ = ["embedding_refusal", "embedding_tensor"]


def embedding_refusal(layer: LayerPlan, spec: QuantSpec) -> Refusal | None:
    """Why an embedding's rows cannot be looked up in such codes; None when they can.

    What it accepts, a tied head's `MatMulNBits` does too.
    """
    return codes_refusal("GatherBlockQuantized", layer.name, layer.shape, spec)


def embedding_tensor(
    layer: LayerPlan, weight: StoredWeight, part: str, dtype: torch.dtype
) -> Tensor:
    """The values of one parameter of `NBitsEmbedding`.

    Raises:
        ValueError: no integer codes, or codes in act order.
    """
    from asvd_q_exporters.onnx.nbits.pack import nbits_tensor

    tensor = nbits_tensor(weight, part, dtype)
    return tensor.flatten(1) if layer.tied is None else tensor
