"""Opens artefacts as the user of one loader does, and writes down what it computes.

    python -P benchmarks/_loaders.py LOADER TOKENS.npy FOLDER OUT.npz [FOLDER OUT.npz …]

A script for processes of their own: it imports nothing of this project. Where the loader's name
ends in "+asvd_q" it makes the one import that users of that loader make; everywhere else asvd_q
cannot be imported, installed or not. A folder that cannot be loaded or run has the error in its
OUT.npz.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GENERATED", "LOADERS", "OURS", "PROMPT", "greedy", "memory"]

OURS = "+asvd_q"
"""Ends the name of a loader that imports asvd_q."""

PROMPT, GENERATED = 32, 64
"""Tokens of a prompt, the first of every window, and tokens generated after it."""

_BATCH = 4

Ids = NDArray[np.int64]
Step = Callable[[Ids, Any], tuple[NDArray[np.float32], Any]]
"""Token ids (batch, tokens) and the cache → logits (batch, tokens, vocabulary) and the cache."""


def greedy(step: Step, windows: Ids) -> Ids:
    """The most likely continuation of every window's prompt, through the cache.

    Returns:
        int64 (windows, `GENERATED`).
    """
    found: list[Ids] = []
    logits, cache = step(windows[:, :PROMPT], None)
    for _ in range(GENERATED - 1):
        found.append(logits[:, -1:].argmax(-1))
        logits, cache = step(found[-1], cache)
    return np.concatenate([*found, logits[:, -1:].argmax(-1)], axis=1)


def _onnxruntime(folder: Path) -> tuple[Step, dict[str, int]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = _threads()
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    inputs = session.get_inputs()
    past = [one for one in inputs if one.name.startswith("past_key_values.")]
    reads_positions = any(one.name == "position_ids" for one in inputs)
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

    def step(ids: Ids, cache: Any) -> tuple[NDArray[np.float32], Any]:
        batch, tokens = ids.shape
        if cache is None:
            cache = [np.zeros((batch, p.shape[1], 0, p.shape[3]), types[p.type]) for p in past]
        length = cache[0].shape[2]
        positions = np.arange(length, length + tokens, dtype=np.int64)
        mask = np.ones((batch, length + tokens), np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask}
        if reads_positions:
            feeds["position_ids"] = np.tile(positions, (batch, 1))
        feeds |= {one.name: value for one, value in zip(past, cache, strict=True)}
        logits, *present = session.run(None, feeds)
        return logits.astype(np.float32), present

    return step, {}


def _onnxruntime_genai(folder: Path) -> tuple[Step, dict[str, int]]:
    import onnxruntime_genai

    config = onnxruntime_genai.Config(str(folder))
    threads = {"session_options": {"intra_op_num_threads": _threads()}}
    config.overlay(json.dumps({"model": {"decoder": threads}}))
    model = onnxruntime_genai.Model(config)

    def generator() -> Any:
        settings = onnxruntime_genai.GeneratorParams(model)
        settings.set_search_options(do_sample=False)
        return onnxruntime_genai.Generator(model, settings)

    def step(ids: Ids, cache: Any) -> tuple[NDArray[np.float32], Any]:
        if cache is None:
            cache = [generator() for _ in ids]
        # One sequence each: a batch takes tokens that are given to it only once.
        for sequence, row in zip(cache, ids, strict=True):
            sequence.append_tokens(row.astype(np.int32))
        logits = [np.array(sequence.get_output("logits"), np.float32) for sequence in cache]
        return np.concatenate(logits), cache

    return step, {}


def _transformers(folder: Path) -> tuple[Step, dict[str, int]]:
    return _torch(_pretrained(folder, remote=True))


def _transformers_ours(folder: Path) -> tuple[Step, dict[str, int]]:
    import asvd_q.integrations.transformers  # noqa: F401

    return _torch(_pretrained(folder, remote=False))


def _gptqmodel(folder: Path) -> tuple[Step, dict[str, int]]:
    import torch
    from gptqmodel import BACKEND, GPTQModel

    # It loads for no float32.
    model = GPTQModel.load(str(folder), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    return _torch(model.model)


def _gptqmodel_ours(folder: Path) -> tuple[Step, dict[str, int]]:
    import asvd_q.integrations.gptqmodel  # noqa: F401

    return _gptqmodel(folder)


def _peft(folder: Path) -> tuple[Step, dict[str, int]]:
    from peft import PeftModel

    base = _pretrained(folder / "base", remote=False)
    return _torch(PeftModel.from_pretrained(base, str(folder / "adapter"), local_files_only=True))


LOADERS: dict[str, Callable[[Path], tuple[Step, dict[str, int]]]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime-genai": _onnxruntime_genai,
    "transformers": _transformers,
    f"transformers{OURS}": _transformers_ours,
    "gptqmodel": _gptqmodel,
    f"gptqmodel{OURS}": _gptqmodel_ours,
    "peft": _peft,
}
"""By name: a folder → how to take a step in it, and its linear layers by class."""


def _pretrained(folder: Path, *, remote: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, trust_remote_code=remote, local_files_only=True
    )


def _torch(model: Any) -> tuple[Step, dict[str, int]]:
    import torch

    model.eval()

    @torch.inference_mode()
    def step(ids: Ids, cache: Any) -> tuple[NDArray[np.float32], Any]:
        output = model(input_ids=torch.from_numpy(ids), past_key_values=cache, use_cache=True)
        return output.logits.float().numpy(), output.past_key_values

    layers: dict[str, int] = {}
    for module in model.modules():
        name = type(module).__name__
        if "Linear" in name and not any(True for _ in module.children()):
            layers[name] = layers.get(name, 0) + 1
    return step, layers


def _threads() -> int:
    """As many as torch takes; 0 is the runtime's own choice."""
    return int(os.environ.get("OMP_NUM_THREADS", 0))


def memory() -> dict[str, int]:
    """Largest resident set of this process so far, and the one of now, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        names = {"peak": "VmHWM", "now": "VmRSS"}
        return {key: int(lines[name].split()[0]) * 1024 for key, name in names.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak": peak, "now": peak}


def _used(loader: str, folder: Path, windows: Ids) -> dict[str, Any]:
    """Everything there is to say of a folder in a loader.

    It is loaded twice: the first time has the imports that loading brings in it, so the memory is
    that of the first and the seconds are those of the second.
    """
    _import(loader, folder)
    before = memory()["now"]
    start = time.perf_counter()
    step, layers = LOADERS[loader](folder)
    first = time.perf_counter() - start
    peak = memory()["peak"]
    logits = np.concatenate(list(_scored(step, windows)))
    generated = greedy(step, windows)
    del step
    start = time.perf_counter()
    LOADERS[loader](folder)
    return {
        "logits": logits,
        "generated": generated,
        "load_seconds": time.perf_counter() - start,
        "first_load_seconds": first,
        "peak_memory_bytes": peak,
        "memory_before_bytes": before,
        "layers": json.dumps(layers),
    }


def _scored(step: Step, windows: Ids) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(windows), _BATCH):
        yield step(windows[start : start + _BATCH], None)[0]


def _import(loader: str, folder: Path) -> None:
    """What loading imports, as far as it can be told, so that it counts as there before."""
    if loader.startswith("onnxruntime"):
        import onnxruntime  # noqa: F401

        return
    import torch  # noqa: F401
    import transformers

    transformers.AutoModelForCausalLM  # noqa: B018
    config = json.loads(next(folder.rglob("config.json")).read_text())
    if config.get("quantization_config", {}).get("quant_method") == "gptq":
        import gptqmodel  # noqa: F401


def main() -> None:
    loader, tokens, *pairs = sys.argv[1:]
    if not loader.endswith(OURS):
        # Source: the import system's reference: None makes every import of the name fail.
        sys.modules.update({"asvd_q": None, "asvd_q_exporters": None})  # type: ignore[dict-item]
    windows = np.load(tokens)
    for folder, out in zip(pairs[::2], pairs[1::2], strict=True):
        found: dict[str, Any]
        try:
            found = _used(loader, Path(folder), windows)
        except Exception as error:  # whatever a loader raises is what the table shows
            lines = str(error).strip().splitlines()
            found = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"}
        np.savez(out, **found)


if __name__ == "__main__":
    main()
