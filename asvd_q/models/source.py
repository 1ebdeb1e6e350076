"""Opens a model folder or a hub model, lazily: headers first, a tensor when it is asked for."""

from __future__ import annotations

import copy
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.errors import ModelError, first_line
from asvd_q.models.card import SourceCard, read_source_card
from asvd_q.models.config import load_config
from asvd_q.models.refs import WeightRef
from asvd_q.models.stored import Codes, read_contents
from asvd_q.models.tensors import TensorInfo
from asvd_q.models.tokenizer import load_tokenizer
from asvd_q.plan import Slot
from asvd_q.records import SourceIdentity

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = ["TOKENIZER_FILES", "SourceModel"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "generation_config.json",
)
"""Small files that belong to a model and travel unchanged into every artefact."""

_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "README.md"]
"""What is taken of a hub model; its card names the licence."""

_RENAMED = {"lm_head.weight": "embed_out.weight"}
"""Parameters whose name in the files transformers has changed in the model: GPT-NeoX's head."""


class SourceModel:
    """A Hugging Face causal language model on disk.

    Built by `SourceModel.open`. Reads headers at once and weights on demand; never a pickle.
    """

    def __init__(
        self, path: Path, name: str, *, revision: str | None, trust_remote_code: bool
    ) -> None:
        self.path = path
        self.name = name
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self._contents = read_contents(path, trust_remote_code=trust_remote_code)
        self.tensors = self._contents.tensors
        self._rounding: torch.dtype | None = None

    @classmethod
    def open(
        cls, path: str, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> SourceModel:
        """Open a folder, or a model of the hub by its name.

        Raises:
            ModelError: nothing of that name, no weights, or a damaged weight file.
        """
        folder = Path(path).expanduser()
        if folder.is_dir():
            name = folder.resolve().name
        else:
            folder, name = _from_hub(path, revision), path
        if not (folder / "config.json").is_file():
            raise ModelError(f"model.path: {folder} has no config.json, so it is no model folder")
        return cls(folder, name, revision=revision, trust_remote_code=trust_remote_code)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return load_config(self.path, trust_remote_code=self.trust_remote_code)

    @property
    def config_fields(self) -> dict[str, Any]:
        """Content of `config.json`, as it is for the dense model."""
        return self._contents.config

    @property
    def codes(self) -> Codes | None:
        """How the weights were quantized before they came here; None for those that were not."""
        return self._contents.codes

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self.path, trust_remote_code=self.trust_remote_code)

    @cached_property
    def identity(self) -> SourceIdentity:
        """What this model is, wherever it lies. Reads every weight file once, for its hash."""
        digest = hashlib.sha256()
        for file in self._contents.files:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        if self.codes is not None:  # what the bytes stand for
            digest.update(json.dumps(self.codes.settings, sort_keys=True).encode())
        return SourceIdentity(
            name=self.name,
            model_type=str(self.config.model_type),
            weights_sha256=digest.hexdigest(),
            revision=self.revision,
        )

    @cached_property
    def dtype(self) -> torch.dtype:
        """The floating-point type that most of the weights are stored in."""
        import torch

        types = {"F64": torch.float32, "F32": torch.float32}
        types |= {"F16": torch.float16, "BF16": torch.bfloat16}
        counts: dict[str, int] = {}
        for info in self.tensors.values():
            counts[info.dtype] = counts.get(info.dtype, 0) + info.numel
        most = max(counts, key=lambda name: counts[name])
        if most not in types:
            raise ModelError(
                f"model.path: the weights of {self.path} are stored as {most}, which is not a "
                "floating-point type this program reads; start from the unquantized model"
            )
        return types[most]

    def rounded_to(self, dtype: torch.dtype) -> SourceModel:
        """The same model, every floating-point tensor rounded to `dtype` as it is read."""
        rounded = copy.copy(self)
        rounded._rounding = dtype
        return rounded

    def resolve(self, name: str) -> str | None:
        """The stored name of a parameter, with or without the base model's prefix."""
        for known in (name, _RENAMED.get(name, name)):
            if known in self.tensors:
                return known
        head, _, rest = name.partition(".")
        if rest in self.tensors:
            return rest
        for prefix in ("model", "transformer", head):
            if f"{prefix}.{name}" in self.tensors:
                return f"{prefix}.{name}"
        return None

    @staticmethod
    def model_name(stored: str) -> str:
        """What the model calls a stored tensor, but for the base model's prefix."""
        return next((name for name, old in _RENAMED.items() if old == stored), stored)

    def tensor(self, name: str) -> Tensor:
        """One stored tensor, copied into memory, in the type it is stored or rounded to.

        Raises:
            ModelError: no tensor of that name, or its file cannot be read.
        """
        stored = self.resolve(name)
        if stored is None:
            raise ModelError(f"{self.path} has no weight called {name}")
        return self._rounded(self.tensors[stored].load())

    def matrix(self, ref: WeightRef) -> Tensor:
        """The weight that a reference names; of a tied embedding the files may have but the head.

        Raises: as `tensor` does.
        """
        name = ref.tensor_name
        if ref.tied is not None and self.resolve(name) is None:
            name = f"{ref.tied}.{ref.parameter}"
        return ref.take(self.tensor(name))

    def rank(self, layer: str) -> int | None:
        """Rank of a layer that the files have as two factors; None for any other."""
        pair = self._pair(layer)
        return None if pair is None else pair[1].shape[0]

    def factors(self, layer: str) -> dict[Slot, Tensor] | None:
        """A (out, rank) and B (rank, in) of such a layer; None for any other."""
        pair = self._pair(layer)
        if pair is None:
            return None
        return {"A": self._rounded(pair[0].load()), "B": self._rounded(pair[1].load())}

    def _pair(self, layer: str) -> tuple[TensorInfo, TensorInfo] | None:
        stored = self.resolve(f"{layer}.weight") or ""
        return self._contents.factors.get(stored.removesuffix(".weight"))

    def _rounded(self, tensor: Tensor) -> Tensor:
        if self._rounding is None or not tensor.is_floating_point():
            return tensor
        return tensor.to(self._rounding)

    @cached_property
    def card(self) -> SourceCard:
        """What the header of the model's own card says."""
        return read_source_card(self.path)

    def companion_files(self) -> list[Path]:
        """Tokenizer and generation files that an artefact carries along; the card is not one."""
        return [self.path / name for name in TOKENIZER_FILES if (self.path / name).is_file()]


def _from_hub(name: str, revision: str | None) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model.path: there is no folder {name}")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=_PATTERNS,
            )
        )
    except Exception as error:  # the hub client raises many unrelated kinds
        raise ModelError(
            f"model.path: {name} is neither a folder nor a model that the hub gives us: "
            f"{first_line(error)}"
        ) from error
