"""The artefact in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from asvd_q.errors import ArtefactError, first_line
from asvd_q.evaluation.padding import positions_behind
from asvd_q_exporters.onnx.session import PROVIDERS, session_options

__all__ = ["OnnxRunner"]

_MODEL_FILE = "model.onnx"
_PAST = "past_key_values."
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxRunner:
    """A `Runner` over an ONNX Runtime session on the CPU.

    The cache is the list of present keys and values, which stay in the runtime's memory.

    Raises:
        ArtefactError: `folder` has no model.onnx, or the runtime cannot load it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / _MODEL_FILE
        if not path.is_file():
            raise ArtefactError(f"{folder} is not an ONNX artefact: it has no {_MODEL_FILE}")
        try:
            self.session = onnxruntime.InferenceSession(
                path, session_options(), providers=PROVIDERS
            )
        except Exception as error:  # the runtime's errors share no base class
            reason = first_line(error)
            raise ArtefactError(
                f"{path} cannot be loaded by ONNX Runtime ({reason}): export it again"
            ) from error
        self.runtime = f"onnxruntime {onnxruntime.__version__} CPU"
        self._past = [one for one in self.session.get_inputs() if one.name.startswith(_PAST)]
        self._outputs = [one.name for one in self.session.get_outputs()]

    def forward(
        self, input_ids: Tensor, cache: Any = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """See `asvd_q.artefact.Runner.forward`."""
        batch, tokens = input_ids.shape
        past = self._empty(batch) if cache is None else cache
        length = past[0].shape()[2] if past else 0
        if attention_mask is None:
            attention_mask = torch.ones((batch, length + tokens), dtype=torch.int64)
        feeds = {
            "input_ids": _value(input_ids),
            "attention_mask": _value(attention_mask),
            "position_ids": _value(positions_behind(attention_mask)[:, -tokens:]),
        }
        feeds |= {one.name: value for one, value in zip(self._past, past, strict=True)}
        logits, *present = self.session.run_with_ort_values(self._outputs, feeds)
        return torch.from_numpy(logits.numpy()).float(), present

    def score(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `asvd_q.artefact.Runner.score`."""
        for batch in batches:
            yield self.forward(batch)[0]

    def _empty(self, batch: int) -> list[onnxruntime.OrtValue]:
        return [
            onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((batch, one.shape[1], 0, one.shape[3]), _FLOATS[one.type])
            )
            for one in self._past
        ]


def _value(tensor: Tensor) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy())
