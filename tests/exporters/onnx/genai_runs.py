"""Tokens of ONNX Runtime GenAI beside those of ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import torch
from numpy.typing import NDArray

from asvd_q.evaluation.generation import generate
from asvd_q.models import SourceModel
from asvd_q.plan import Plan
from asvd_q.store import Store, StoreHeader
from asvd_q_exporters.onnx import OnnxOptions
from tests.exporters.onnx.conftest import Export, export

__all__ = ["assert_near", "assert_same", "genai_settings", "in_genai", "untouched"]


def genai_settings(folder: Path) -> dict[str, Any]:
    """What the artefact's genai_config.json holds."""
    found: dict[str, Any] = json.loads((folder / "genai_config.json").read_text())
    return found


def in_genai(
    folder: Path, prompts: list[list[int]], count: int
) -> tuple[list[list[int]], NDArray[np.float32]]:
    """At most `count` tokens after each prompt, and logits (batch, tokens, vocabulary) of these.

    The end of text counts, and is the last.
    """
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, batch_size=len(prompts))
    generator = genai.Generator(model, parameters)
    longest = max(map(len, prompts))
    padding = genai_settings(folder)["model"]["pad_token_id"]
    rows = [prompt + [padding] * (longest - len(prompt)) for prompt in prompts]
    generator.append_tokens(np.array(rows, np.int32))
    logits = np.array(generator.get_output("logits"))
    for _ in range(count):
        if generator.is_done():
            break
        generator.generate_next_token()
    found = [generator.get_sequence(row)[longest:].tolist() for row in range(len(prompts))]
    return found, logits


def untouched(model: Path, folder: Path, options: OnnxOptions) -> Export:
    """A model exported as it is."""
    source = SourceModel.open(str(model))
    plan = Plan(float_type="float32", layers=())
    header = StoreHeader(key="test", asvd_q="0", source=source.identity, plan=plan)
    Store.create(folder / "store", header, source)
    return export(Store.open(folder / "store", source), folder / "onnx", options)


def assert_same(made: Export, ids: list[int]) -> list[int]:
    """Logits of a prompt and greedy tokens behind it are those of our runner; the tokens."""
    (found,), logits = in_genai(made.folder, [ids], 32)
    runner = made.exporter.open(made.folder)
    assert_near(logits[0], runner.forward(torch.tensor([ids]))[0][0].numpy())
    assert len(found) > 4
    assert found == list(generate(runner, ids, max_new_tokens=len(found)))
    return found


def assert_near(one: NDArray[np.float32], other: NDArray[np.float32]) -> None:
    assert np.linalg.norm(one.astype(np.float32) - other) <= 1e-6 * np.linalg.norm(other)
