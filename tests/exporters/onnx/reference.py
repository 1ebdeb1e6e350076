"""Logits of a store from transformers alone, and small helpers around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from asvd_q.store import Store


def reference_model(store: Store) -> Any:
    """The source model in float32 with every stored layer's product of matrices as its weight."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(store.source.path, dtype=torch.float32)
    for record in store.records():
        matrices = store.replaced(record.name)
        if matrices is None:
            continue
        if record.form == "dense":
            weight = matrices["weight"]
        else:
            weight = (matrices["A"].double() @ matrices["B"].double()).float()
        parameter = model.get_submodule(record.name).weight
        conv1d = type(model.get_submodule(record.name)).__name__ == "Conv1D"
        parameter.data.copy_(weight.T if conv1d else weight)
    return model.eval()


@torch.no_grad()
def reference_logits(store: Store, input_ids: Tensor, **inputs: Any) -> Tensor:
    logits: Tensor = reference_model(store)(input_ids=input_ids, **inputs).logits
    return logits


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def tokens(batch: int, length: int, vocabulary: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (batch, length), generator=generator)


def empty_past(session: Any, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    return {
        one.name: np.zeros((batch, one.shape[1], 0, one.shape[3]), np.float32)
        for one in session.get_inputs()
        if one.name.startswith("past_key_values.")
    }
