"""What optimum's `ORTModelForCausalLM` makes of artefacts, in a Python that has it and not asvd_q.

    python -P benchmarks/_optimum.py REQUEST.json

REQUEST.json has the number of tokens to generate, `new`, and `artefacts`: of each its `folder`, the
file that it is `out` to be written to, the `ids` of prompts, and their `texts`, without which no
pipeline is run. A folder that cannot be loaded or run has the error in its file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_PACKAGES = ("optimum", "optimum-onnx", "transformers", "onnxruntime", "torch")

Found = tuple[str, NDArray[Any]]


def _used(artefact: dict[str, Any], new: int) -> Iterator[Found]:
    from optimum.onnxruntime import ORTModelForCausalLM

    folder = Path(artefact["folder"])
    for name, binding in (("off", False), ("on", True)):
        model = ORTModelForCausalLM.from_pretrained(
            folder, use_cache=True, use_io_binding=binding, local_files_only=True
        )
        model.generation_config.eos_token_id = None  # so that all texts have one length
        yield "shapes_set", np.array(_take_shapes(model))
        for what, array in _generated(model, artefact["ids"], new):
            yield f"{name}.{what}", array
    if artefact["texts"]:
        yield from _pipelines(folder, model, artefact["texts"], new)


def _take_shapes(model: Any) -> bool:
    """Whether the width or number of the cached heads had to be set, which is done.

    optimum computes the shape of an empty past from config.json: width as hidden size / heads,
    whatever `head_dim` says, and as many heads as attention has, for all but some model types.
    """
    _, heads, _, width = model.input_shapes["past_key_values.0.key"]
    known = model.num_key_value_heads, model.embed_size_per_head
    model.num_key_value_heads, model.embed_size_per_head = heads, width
    return known != (heads, width)


def _generated(model: Any, rows: list[list[int]], new: int) -> Iterator[Found]:
    """Logits of the longest row, and greedy tokens (rows, new): of each alone, of all at once."""
    longest = torch.tensor([max(rows, key=len)])
    logits = model(input_ids=longest, attention_mask=torch.ones_like(longest)).logits
    yield "logits", logits.float().numpy()

    def greedy(ids: torch.Tensor, mask: torch.Tensor) -> NDArray[Any]:
        tokens = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
        )
        return np.asarray(tokens[:, ids.shape[1] :])

    alone = [torch.tensor([row]) for row in rows]
    yield "alone", np.concatenate([greedy(ids, torch.ones_like(ids)) for ids in alone])
    length = longest.shape[1]
    padded = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    yield "batch", greedy(padded, mask)


def _pipelines(folder: Path, model: Any, texts: list[str], new: int) -> Iterator[Found]:
    """Greedy tokens (texts, new) of transformers' pipeline around a model, and of optimum's."""
    from optimum.onnxruntime import pipeline as optimum_pipeline
    from transformers import PreTrainedTokenizerFast, pipeline

    # Not AutoTokenizer: a tokenizer that transformers 5 saved may name a class that is new there.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    makers: dict[str, Callable[[], Any]] = {
        "transformers": lambda: pipeline("text-generation", model=model, tokenizer=tokenizer),
        "optimum": lambda: optimum_pipeline(
            "text-generation", model=str(folder), tokenizer=tokenizer
        ),
    }
    for name, make in makers.items():
        run = make()
        _take_shapes(run.model)
        run.model.generation_config.eos_token_id = None
        tokens = [
            run(text, max_new_tokens=new, do_sample=False, pad_token_id=0, return_tensors=True)
            for text in texts
        ]
        yield f"pipeline.{name}", np.array([row[0]["generated_token_ids"][-new:] for row in tokens])


def main() -> None:
    (path,) = sys.argv[1:]
    request = json.loads(Path(path).read_text())
    versions = json.dumps({name: version(name) for name in _PACKAGES})
    for artefact in request["artefacts"]:
        found: dict[str, Any]
        try:
            found = dict(_used(artefact, request["new"]))
        except Exception as error:  # whatever is raised is what the table shows
            lines = str(error).strip().splitlines()
            found = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"}
        np.savez(artefact["out"], versions=versions, **found)


if __name__ == "__main__":
    main()
