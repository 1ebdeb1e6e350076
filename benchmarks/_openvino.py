"""A model in OpenVINO on the CPU, run by a Python that has it and not this package.

    python _openvino.py MODEL.onnx FEEDS.npz RESULTS.npz GROUP THREADS

FEEDS.npz has token ids (batch, tokens) and `prompt`, how many of them are read at once; the rest
follow one by one. GROUP is OpenVINO's own setting for activations that it rounds to int8: how many
share a scale, 0 to round none, and -1 to leave it as it comes. RESULTS.npz gets the logits
(batch, tokens, vocabulary), seconds per token after the prompt, the type of the weights that every
product of a matrix reads, and OpenVINO's version.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import openvino


def main() -> None:
    path, feeds, results, group, threads = sys.argv[1:]
    with np.load(feeds) as archive:
        ids, prompt = archive["ids"], int(archive["prompt"])
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": int(threads),
    }
    if int(group) >= 0:
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = int(group)
    model = openvino.Core().compile_model(path, "CPU", settings)
    request = model.create_infer_request()
    batch, total = ids.shape
    past = _empty_past(model, batch)
    parts, seconds = [], []
    for start in (0, *range(prompt, total)):
        end = prompt if start == 0 else start + 1
        begin = time.perf_counter()
        inputs = {
            "input_ids": ids[:, start:end],
            "attention_mask": np.ones((batch, end), np.int64),
            "position_ids": np.broadcast_to(np.arange(start, end), (batch, end - start)),
        }
        found = request.infer(inputs | past)
        seconds.append(time.perf_counter() - begin)
        outputs = {output.any_name: np.array(value) for output, value in found.items()}
        parts.append(outputs.pop("logits").astype(np.float32))
        past = {name.replace("present", "past_key_values"): v for name, v in outputs.items()}
    kinds = [_kind(operation) for operation in model.get_runtime_model().get_ops()]
    np.savez(
        results,
        logits=np.concatenate(parts, axis=1),
        seconds=np.median(seconds[1:]),
        kinds=[kind for kind in kinds if kind],
        version=openvino.__version__,
    )


def _empty_past(model: Any, batch: int) -> dict[str, Any]:
    past = {}
    for entry in model.inputs:
        if entry.any_name.startswith("past_key_values."):
            shape = entry.partial_shape
            sides = (batch, shape[1].get_length(), 0, shape[3].get_length())
            past[entry.any_name] = np.zeros(sides, entry.element_type.to_dtype())
    return past


def _kind(operation: Any) -> str:
    """Type of the weights of a product; empty for other operations."""
    facts = operation.get_rt_info()
    if facts["layerType"].astype(str) not in ("FullyConnected", "MatMul"):
        return ""
    return str(facts["runtimePrecision"].astype(str))


if __name__ == "__main__":
    main()
