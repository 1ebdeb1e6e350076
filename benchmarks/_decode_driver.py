"""Runs any decoder's graph token by token in ONNX Runtime, whoever has written it.

Inputs are `input_ids`, `attention_mask`, perhaps `position_ids`, `past_key_values.%d.key/value`;
outputs `logits` and `present.%d.key/value`. Where the graph can write into its past, past and
present are the same buffers, as long as a sequence gets; elsewhere the present of a step is the
past of the next. Everything is bound, so that nothing is copied between steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from asvd_q_exporters.onnx.session import PROVIDERS, session_options

__all__ = ["Decoder", "GraphFacts", "Ids", "OrtDecoder", "greedy", "prompt"]

Ids = NDArray[np.int64]

_PAST = "past_key_values."
_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class GraphFacts:
    """What there is to know before a graph is run.

    Attributes:
        shared_cache: past and present may be one buffer of the greatest length; otherwise the
            present of a step is the past of the next.
        token_bytes: of the initializers of matrix products, the head's included; a token reads
            each of them once. Of the embedding it reads one row, which does not count.
        head_size: the last axis of keys and values.
    """

    shared_cache: bool
    token_bytes: int
    head_size: int


class Decoder(Protocol):
    """A model that generates greedily, one token per sequence and step.

    Attributes:
        vocabulary: number of logits.
    """

    vocabulary: int

    def prefill(self, ids: Ids, room: int) -> Ids:
        """Start anew with a prompt.

        Args:
            ids: (batch, tokens).
            room: tokens that will follow at most.

        Returns:
            The most likely next token of each sequence, (batch, 1).
        """
        ...

    def step(self, tokens: Ids) -> Ids:
        """Go on by one token per sequence, (batch, 1), to the next ones."""
        ...


def greedy(decoder: Decoder, ids: Ids, count: int) -> Ids:
    """The most likely continuation of each prompt, int64 (batch, count)."""
    found = [decoder.prefill(ids, count)]
    while len(found) < count:
        found.append(decoder.step(found[-1]))
    return np.concatenate(found, axis=1)


def prompt(vocabulary: int, batch: int, tokens: int) -> Ids:
    """The same random tokens at every call, none of the first few, which may be special."""
    random = np.random.default_rng(0)
    return random.integers(min(8, vocabulary - 1), vocabulary, (batch, tokens), dtype=np.int64)


class OrtDecoder:
    """A graph in a session of its own, on the CPU.

    Attributes:
        session: the runtime's.
        vocabulary: number of logits.
    """

    def __init__(
        self,
        path: Path,
        *,
        facts: GraphFacts,
        threads: int,
        options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        """
        Args:
            facts: of this graph.
            options: further settings; a new object, which this one changes.
        """
        options = options or session_options()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=PROVIDERS)
        inputs = self.session.get_inputs()
        names = [one.name for one in inputs]
        self._positions = "position_ids" in names
        self._past = [one for one in inputs if one.name.startswith(_PAST)]
        self._shared = facts.shared_cache
        self._head_size = facts.head_size
        logits = next(one for one in self.session.get_outputs() if one.name == "logits")
        self.vocabulary = int(logits.shape[-1])
        self._logits_type = _TYPES[logits.type]
        self._cache: list[onnxruntime.OrtValue] = []
        self._binding = self.session.io_binding()
        self._length = 0

    def prefill(self, ids: Ids, room: int) -> Ids:
        """See `Decoder.prefill`."""
        batch, tokens = ids.shape
        self._binding = self.session.io_binding()
        self._length = 0
        shapes = [
            (batch, one.shape[1], tokens + room if self._shared else 0, self._head_size)
            for one in self._past
        ]
        # Buffers of an earlier sequence are taken again: what they hold is not looked at.
        if not self._shared or [tuple(value.shape()) for value in self._cache] != shapes:
            self._cache = [
                onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, _TYPES[one.type]))
                for one, shape in zip(self._past, shapes, strict=True)
            ]
        if self._shared:
            for one, value in zip(self._past, self._cache, strict=True):
                self._binding.bind_ortvalue_input(one.name, value)
                self._binding.bind_ortvalue_output(_present(one.name), value)
        return self._run(ids, self._bind_logits(batch, tokens))

    def step(self, tokens: Ids) -> Ids:
        """See `Decoder.step`."""
        if self._logits.shape[1] != 1:
            self._bind_logits(len(tokens), 1)
        return self._run(tokens, self._logits)

    def _bind_logits(self, batch: int, tokens: int) -> NDArray[Any]:
        self._logits = np.empty((batch, tokens, self.vocabulary), self._logits_type)
        self._logits_value = onnxruntime.OrtValue.ortvalue_from_numpy(self._logits)
        return self._logits

    def _run(self, ids: Ids, logits: NDArray[Any]) -> Ids:
        batch, tokens = ids.shape
        start, self._length = self._length, self._length + tokens
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, self._length), np.int64),
        }
        if self._positions:
            positions = np.arange(start, self._length, dtype=np.int64)
            feeds["position_ids"] = np.tile(positions, (batch, 1))
        # Held until the run is over: a binding does not keep what an array owns.
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(feed) for name, feed in feeds.items()
        }
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output("logits", self._logits_value)
        if not self._shared:
            for one, value in zip(self._past, self._cache, strict=True):
                self._binding.bind_ortvalue_input(one.name, value)
                self._binding.bind_output(_present(one.name), "cpu")
        self.session.run_with_iobinding(self._binding)
        if not self._shared:
            self._cache = self._binding.get_outputs()[1:]
        best: Ids = logits[:, -1:].argmax(-1)
        return best


def _present(name: str) -> str:
    return f"present.{name.removeprefix(_PAST)}"
