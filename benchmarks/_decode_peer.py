"""ONNX Runtime GenAI: its own builder's graph of a model, and its own loop over any graph.

    python -m benchmarks._decode_peer MODEL OUT GROUP

builds, in a process of its own: the builder speaks a lot, and keeps what it has loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from asvd_q.files import atomic_folder
from benchmarks._decode_driver import Ids

__all__ = ["GenaiDecoder", "build", "peer_options"]


def peer_options(group: int) -> dict[str, Any]:
    """What the builder is asked for; everything else is its default."""
    extra = [] if group == 32 else [f"block_size={group}"]
    return {"precision": "int4", "execution_provider": "cpu", "extra_options": extra}


def build(model: Path, folder: Path, group: int) -> None:
    """Write the builder's 4-bit graph of a checkpoint, with its genai_config.json.

    Args:
        folder: must not exist.

    Raises:
        RuntimeError: with the last line of what the builder said.
    """
    with atomic_folder(folder) as partial:
        command = [sys.executable, "-m", "benchmarks._decode_peer", str(model), str(partial)]
        ended = subprocess.run([*command, str(group)], capture_output=True, text=True)
        if ended.returncode != 0 or not (partial / "model.onnx").is_file():
            lines = ended.stderr.strip().splitlines()
            raise RuntimeError(f"the GenAI builder failed: {lines[-1] if lines else 'no message'}")


class GenaiDecoder:
    """A folder with genai_config.json in GenAI's own runtime; a `Decoder`.

    Attributes:
        vocabulary: number of logits.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        session = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        self._model = onnxruntime_genai.Model(config)
        content = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        self.vocabulary = int(content["model"]["vocab_size"])
        self._generator: Any = None

    def prefill(self, ids: Ids, room: int) -> Ids:
        """See `Decoder.prefill`."""
        batch, tokens = ids.shape
        parameters = self._genai.GeneratorParams(self._model)
        length = tokens + room + 1  # with the token that the prompt itself leads to
        # The shortest length is the greatest too: a token that ends a text does not end the loop.
        parameters.set_search_options(
            max_length=length, min_length=length, batch_size=batch, do_sample=False
        )
        self._generator = self._genai.Generator(self._model, parameters)
        self._generator.append_tokens(ids.astype(np.int32))
        return self.step(ids[:, -1:])

    def step(self, tokens: Ids) -> Ids:
        """See `Decoder.step`; the generator itself knows which tokens it chose last."""
        self._generator.generate_next_token()
        return np.asarray(self._generator.get_next_tokens(), np.int64)[:, None]


def _build(model: str, folder: str, group: int) -> None:
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    asked = peer_options(group)
    precision, provider = asked["precision"], asked["execution_provider"]
    with tempfile.TemporaryDirectory() as cache:
        common = (None, model, folder, precision, provider, cache)
        create_model(*common, **parse_extra_options(*common, asked["extra_options"]))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _build(sys.argv[1], sys.argv[2], int(sys.argv[3]))
