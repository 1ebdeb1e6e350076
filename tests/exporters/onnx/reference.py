"""Logits of a store from transformers alone, single operators, and small helpers around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from asvd_q.store import Store


def reference_model(store: Store) -> Any:
    """The source model in float32 with what every stored layer's matrices make as its weight."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(store.source.path, dtype=torch.float32)
    for record in store.records():
        matrices = store.replaced(record.name)
        if matrices is None:
            continue
        weight = torch.zeros(record.shape, dtype=torch.float64)
        if "weight" in matrices:
            weight += matrices["weight"]
        if "A" in matrices:
            weight += matrices["A"].double() @ matrices["B"].double()
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
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {
        one.name: np.zeros((batch, one.shape[1], 0, one.shape[3]), dtypes[one.type])
        for one in session.get_inputs()
        if one.name.startswith("past_key_values.")
    }


def run_operator(
    name: str, attributes: Mapping[str, int], weights: Sequence[np.ndarray[Any, Any]], x: Tensor
) -> Tensor:
    """x Wᵀ from one operator of ONNX Runtime whose weight inputs are initializers."""
    names = [f"weight{index}" for index in range(len(weights))]
    node = helper.make_node(name, ["x", *names], ["y"], domain="com.microsoft", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(x.numpy().dtype)
    leading = [None] * (x.dim() - 1)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, [*leading, attributes["K"]])],
        [helper.make_tensor_value_info("y", kind, [*leading, attributes["N"]])],
        [numpy_helper.from_array(*pair) for pair in zip(weights, names, strict=True)],
    )
    return run_graph(graph, {"x": x.numpy()})


def run_graph(graph: onnx.GraphProto, feeds: dict[str, NDArray[Any]]) -> Tensor:
    """The one output of a graph of ONNX Runtime's operators, on the CPU."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, feeds)
    return torch.from_numpy(output)
