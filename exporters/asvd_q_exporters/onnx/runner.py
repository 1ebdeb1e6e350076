"""The artefact in ONNX Runtime."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from asvd_q.artefact import METADATA_FILE, parse_metadata, read_metadata
from asvd_q.errors import ArtefactError, first_line
from asvd_q.evaluation.padding import positions_behind
from asvd_q.records import ArtefactMetadata
from asvd_q_exporters.onnx.buffers import Buffers, SharedPast
from asvd_q_exporters.onnx.keys import BUFFERS_KEY, METADATA_KEY, POSITIONS_KEY
from asvd_q_exporters.onnx.session import PROVIDERS, session_options

__all__ = ["OnnxRunner"]

_MODEL_FILE = "model.onnx"
_PAST, _PRESENT = "past_key_values.", "present."
_POSITIONS = "position_ids"
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

OrtValues = Sequence[onnxruntime.OrtValue]


class OnnxRunner:
    """A `Runner` over an ONNX Runtime session on the CPU.

    Keys and values stay in the runtime's memory, and where the graph allows it, new ones are
    written behind the old ones.

    Raises:
        ArtefactError: `folder` has no model.onnx, or the runtime cannot load it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / _MODEL_FILE
        if not path.is_file():
            raise ArtefactError(f"{folder} is not an ONNX artefact: it has no {_MODEL_FILE}")
        self.session = _session(folder)
        self.runtime = f"onnxruntime {onnxruntime.__version__} CPU"
        inputs = self.session.get_inputs()
        properties = self.session.get_modelmeta().custom_metadata_map
        self._in_place = properties.get(BUFFERS_KEY) == "shared"
        self._longest = int(properties.get(POSITIONS_KEY, sys.maxsize))
        self._past = [one for one in inputs if one.name.startswith(_PAST)]
        self._has_positions = any(one.name == _POSITIONS for one in inputs)

    def forward(
        self, input_ids: Tensor, cache: Any = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """See `asvd_q.artefact.Runner.forward`.

        Raises:
            ArtefactError: more tokens than the graph has positions for.
        """
        batch, tokens = input_ids.shape
        length = _length(cache)
        if length + tokens > self._longest:
            raise ArtefactError(
                f"the ONNX graph takes {self._longest} tokens, which is the model's context, and "
                f"would have to take {length + tokens}: use fewer"
            )
        if attention_mask is None:
            attention_mask = torch.ones((batch, length + tokens), dtype=torch.int64)
        if cache is None:
            return self._first(input_ids, attention_mask)
        if batch == 1 or tokens == 1 or not isinstance(cache, SharedPast):
            return self._next(input_ids, attention_mask, cache)
        # The operator takes several tokens behind others of one sequence only. One token after
        # the other would not do: longrope turns all new ones by the angles of the whole length.
        found = [
            self._next(input_ids[index : index + 1], attention_mask[index : index + 1], row)
            for index, row in enumerate(cache.rows(tokens))
        ]
        logits, rows = zip(*found, strict=True)
        return torch.cat(logits), SharedPast.of_rows(rows)

    def score(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `asvd_q.artefact.Runner.score`."""
        for batch in batches:
            yield self.forward(batch)[0]

    def _first(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Any]:
        """Tokens with none before them; the runtime makes room for their keys and values."""
        past = [
            onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((input_ids.shape[0], one.shape[1], 0, one.shape[3]), _FLOATS[one.type])
            )
            for one in self._past
        ]
        logits, present = self._run(input_ids, attention_mask, past, None)
        if not self._in_place:
            return logits, present
        length = input_ids.shape[1]
        return logits, SharedPast(Buffers(present, length, length), length)

    def _next(self, input_ids: Tensor, attention_mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        if not isinstance(cache, SharedPast):
            return self._run(input_ids, attention_mask, cache, None)
        tokens = input_ids.shape[1]
        cache = cache.with_room(tokens)
        values = cache.buffers.values
        logits, _ = self._run(input_ids, attention_mask, values, values)
        return logits, cache.extended(tokens)

    def _run(
        self, input_ids: Tensor, attention_mask: Tensor, past: OrtValues, present: OrtValues | None
    ) -> tuple[Tensor, list[onnxruntime.OrtValue]]:
        """One pass.

        Args:
            present: where keys and values go; None has the runtime make room.

        Returns:
            Logits (batch, tokens, vocabulary), and keys and values.

        Raises:
            ArtefactError: the runtime failed, as it does where positions are looked up beyond the
                end of their table.
        """
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._has_positions:
            feeds[_POSITIONS] = positions_behind(attention_mask)[:, -input_ids.shape[1] :]
        binding = self.session.io_binding()
        for name, tensor in feeds.items():
            binding.bind_cpu_input(name, tensor.to(torch.int64).contiguous().numpy())
        binding.bind_output("logits")
        for index, one in enumerate(self._past):
            binding.bind_ortvalue_input(one.name, past[index])
            name = one.name.replace(_PAST, _PRESENT)
            if present is None:
                binding.bind_output(name)
            else:
                binding.bind_ortvalue_output(name, present[index])
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # the runtime's errors share no base class
            raise ArtefactError(
                f"ONNX Runtime cannot compute {attention_mask.shape[1]} tokens with this graph "
                f"({first_line(error)}): where that is more than the model's context, use fewer"
            ) from error
        logits, *values = binding.get_outputs()
        return torch.from_numpy(logits.numpy()).float(), values


def _session(folder: Path) -> onnxruntime.InferenceSession:
    """At the accuracy level that the folder says, or the graph where that is alone."""
    path = folder / _MODEL_FILE
    if (folder / METADATA_FILE).is_file():
        return _opened(path, _level(read_metadata(folder)))
    said = _opened(path, None).get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    level = None if said is None else _level(parse_metadata(said, f"the metadata in {path}"))
    return _opened(path, level)


def _level(metadata: ArtefactMetadata) -> int | None:
    return cast(int | None, metadata.options.get("accuracy_level"))


def _opened(path: Path, level: int | None) -> onnxruntime.InferenceSession:
    options = session_options(level)
    try:
        return onnxruntime.InferenceSession(path, options, providers=PROVIDERS)
    except Exception as error:  # the runtime's errors share no base class
        raise ArtefactError(
            f"{path} cannot be loaded by ONNX Runtime ({first_line(error)}): export it again"
        ) from error


def _length(cache: Any) -> int:
    """Tokens in a cache."""
    if isinstance(cache, SharedPast):
        return cache.length
    return int(cache[0].shape()[2]) if cache else 0
