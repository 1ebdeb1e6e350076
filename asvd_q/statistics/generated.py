"""Calibration text that the model writes itself.

A model's own samples follow the distribution it was trained on, in its proportions, which no single
corpus does: statistics of them are expectations under the model, and no text has to be found.

Source: Williams et al., "Self-calibration for language model quantization and pruning",
arXiv 2410.17170, who sample with other temperatures too; here it is the plain distribution.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asvd_q import __version__
from asvd_q.errors import CorpusError, ResourceError
from asvd_q.files import atomic_path, make_folder
from asvd_q.models.assemble import assemble, nothing_replaced
from asvd_q.models.skeleton import Skeleton
from asvd_q.models.source import SourceModel
from asvd_q.progress import Progress, silent
from asvd_q.statistics.sampling import draw_tokens

__all__ = ["GeneratedText", "sample_tokens"]

_CACHE_BYTES = 2**31
"""Keys and values that are alive at a time; more samples are generated in several turns."""

_STAGE = "sampling calibration text"


@dataclass(frozen=True)
class GeneratedText:
    """Windows sampled from a model, kept on disk once they are there.

    Attributes:
        source: the dense model.
        seed: of the samples.
        device, dtype: of the forward passes.
        folder: where the tokens are kept, under a key of all that they depend on; None keeps
            nothing.
        known_only: take what is kept, or fail; run nothing.
        progress: called with the number of tokens of each window that are done.
    """

    source: SourceModel
    skeleton: Skeleton
    seed: int
    device: str
    dtype: torch.dtype
    folder: Path | None = None
    known_only: bool = False
    progress: Progress = silent

    name = "generated"
    split = "sampled"

    def windows(self, count: int, window: int, first: int | None) -> Tensor:
        """Sampled windows, int64 (count, window).

        Args:
            first: BOS, when windows are to start with it; None leaves the start token out.

        Raises:
            CorpusError: `known_only`, and nothing is kept.
            ResourceError: the model does not fit into memory as a whole.
        """
        start = self._start() if first is None else first
        path = None if self.folder is None else self.folder / self._file_name(count, window, first)
        kept = None if path is None else _read(path, (count, window))
        if kept is not None:
            return kept
        if self.known_only:
            raise CorpusError(
                "the calibration text of this recipe is sampled from the model, and has not been "
                "yet: run `asvd-q search` on it first"
            )
        tokens = self._sample(count, window, start, keep_start=first is not None)
        if path is not None:
            make_folder(path.parent)
            with atomic_path(path) as partial:
                save_file({"tokens": tokens}, partial)
        return tokens

    def _start(self) -> int | None:
        """What a text starts with: BOS, else what ends one, else any token."""
        tokenizer = self.source.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return None

    def _sample(self, count: int, window: int, start: int | None, *, keep_start: bool) -> Tensor:
        self._require_memory()
        model = assemble(
            self.skeleton.model,
            "",
            self.source,
            nothing_replaced,
            device=self.device,
            dtype=self.dtype,
        )
        generator = torch.Generator().manual_seed(self.seed)
        if start is None:
            vocabulary = len(self.source.tokenizer)
            starts = torch.randint(0, vocabulary, (count,), generator=generator)
        else:
            starts = torch.full((count,), start)
        tokens = sample_tokens(
            model,
            starts,
            window - 1 if keep_start else window,
            generator,
            device=self.device,
            progress=lambda done: self.progress(_STAGE, done, window),
        )
        self.progress(_STAGE, window, window)
        return torch.cat([starts[:, None], tokens], 1) if keep_start else tokens

    def _require_memory(self) -> None:
        import psutil

        needed = sum(info.numel for info in self.source.tensors.values()) * self.dtype.itemsize
        free = psutil.virtual_memory().available
        if self.device == "cpu" and needed > free:
            raise ResourceError(
                "calibration text is sampled from the whole model, which takes "
                f"{needed / 2**30:.1f} GiB where {free / 2**30:.1f} GiB are free: name a corpus of "
                "text in calibration.corpora instead of generated"
            )

    def _file_name(self, count: int, window: int, first: int | None) -> str:
        content = {
            "asvd_q": __version__,
            "torch": torch.__version__,
            "device": self.device,
            "dtype": str(self.dtype),
            "weights": self.source.identity.weights_sha256,
            "start": self._start(),
            "samples": [count, window, first, self.seed],
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{digest[:16]}.safetensors"


@torch.inference_mode()
def sample_tokens(
    model: torch.nn.Module,
    starts: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Continue every start token by tokens drawn from the model's own distribution.

    Args:
        model: a causal language model of transformers.
        starts: int64 (samples,).
        count: tokens to draw for each, the start not counted.
        generator: on the CPU; one number per token, whatever the device and the turns.
        progress: called with the number of tokens done, of all turns as if they were one.

    Returns:
        int64 (samples, count), on the CPU.
    """
    numbers = torch.rand(len(starts), count, generator=generator, dtype=torch.float64)
    turns = _turns(model, starts, count, device)
    found = []
    for turn, (first, draws) in enumerate(
        zip(starts.chunk(turns), numbers.chunk(turns), strict=True)
    ):
        cache, token, drawn = None, first.to(device), []
        for position in range(count):
            output = model(input_ids=token[:, None], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            token = draw_tokens(output.logits[:, -1].double(), draws[:, position])
            drawn.append(token.cpu())
            progress((turn * count + position + 1) // turns)
        found.append(torch.stack(drawn, 1))
    return torch.cat(found).clone()


def _turns(model: torch.nn.Module, starts: Tensor, count: int, device: str) -> int:
    """How many parts the samples are generated in, so that the cache stays within its limit."""
    output = model(input_ids=starts[:1, None].to(device), use_cache=True)
    layers = output.past_key_values.layers
    per_token = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    whole = per_token * count * len(starts)
    return int(min(-(-whole // _CACHE_BYTES), len(starts))) or 1


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Tokens that an earlier run kept; None where they are missing or damaged."""
    if not path.is_file():
        return None
    try:
        tokens = load_file(path)["tokens"]
    except (SafetensorError, OSError, KeyError):
        return None
    return tokens if tuple(tokens.shape) == shape else None
