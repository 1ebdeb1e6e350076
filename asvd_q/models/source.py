"""Opens a model folder or a hub model, lazily: headers first, a tensor when it is asked for."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.errors import ModelError, first_line
from asvd_q.models.tokenizer import load_tokenizer
from asvd_q.records import SourceIdentity

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = ["TOKENIZER_FILES", "SourceModel", "TensorInfo"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
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


class TensorInfo:
    """Where one tensor lies: its file, shape and safetensors type name ("BF16", "F32")."""

    __slots__ = ("dtype", "file", "shape")

    def __init__(self, file: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.file = file
        self.shape = shape
        self.dtype = dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


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
        self.tensors = _index(path)
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
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(
                self.path, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (ValueError, OSError, KeyError) as error:
            raise ModelError(
                f"model.path: the configuration in {self.path} cannot be read: {first_line(error)}"
            ) from error

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self.path, trust_remote_code=self.trust_remote_code)

    @cached_property
    def identity(self) -> SourceIdentity:
        """What this model is, wherever it lies. Reads every weight file once, for its hash."""
        digest = hashlib.sha256()
        for file in sorted({info.file for info in self.tensors.values()}):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
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
        if name in self.tensors:
            return name
        head, _, rest = name.partition(".")
        if rest in self.tensors:
            return rest
        for prefix in ("model", "transformer", head):
            if f"{prefix}.{name}" in self.tensors:
                return f"{prefix}.{name}"
        return None

    def tensor(self, name: str) -> Tensor:
        """One stored tensor, copied into memory, in the type it is stored or rounded to.

        Raises:
            ModelError: no tensor of that name, or its file cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        stored = self.resolve(name)
        if stored is None:
            raise ModelError(f"{self.path} has no weight called {name}")
        file = self.tensors[stored].file
        try:
            # Opened for every read: pages of a mapping that stays open count as our memory.
            with safe_open(file, framework="pt") as weights:
                tensor: Tensor = weights.get_tensor(stored).clone()
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} cannot be read ({first_line(error)}): download or copy it again"
            ) from error
        if self._rounding is not None and tensor.is_floating_point():
            tensor = tensor.to(self._rounding)
        return tensor

    def companion_files(self) -> list[Path]:
        """Tokenizer and generation files that an artefact carries along."""
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
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"],
            )
        )
    except Exception as error:  # the hub client raises many unrelated kinds
        raise ModelError(
            f"model.path: {name} is neither a folder nor a model that the hub gives us: "
            f"{first_line(error)}"
        ) from error


def _index(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a model folder, each file's header checked against the file's length."""
    if (folder / _INDEX).is_file():
        try:
            names = json.loads((folder / _INDEX).read_text())["weight_map"].values()
            files = sorted({folder / os.path.basename(name) for name in names})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{folder / _INDEX} is damaged: {first_line(error)}") from error
    elif (folder / _SINGLE).is_file():
        files = [folder / _SINGLE]
    else:
        found = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
        why = (
            f"only {found[0]}, a pickle, which is never loaded; convert it to safetensors"
            if found
            else f"neither {_SINGLE} nor {_INDEX}"
        )
        raise ModelError(f"model.path: {folder} has no weights that can be read: {why}")
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file} is named in {_INDEX} and is missing: download it again")
        tensors |= _header(file)
    if not tensors:
        raise ModelError(f"model.path: {folder} holds no tensors")
    return tensors


def _header(file: Path) -> dict[str, TensorInfo]:
    """Tensors that a header lists: 8 bytes of length, JSON, then the data it gives offsets into.

    Source: https://github.com/huggingface/safetensors, section "Format".
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ModelError(f"{file} is truncated or not a safetensors file: copy it again")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            found = {
                name: TensorInfo(file, tuple(entry["shape"]), entry["dtype"])
                for name, entry in header.items()
            }
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(f"{file} has a damaged header: copy it again") from error
    if size != 8 + length + end:
        raise ModelError(
            f"{file} is truncated: it has {size} bytes and its header promises "
            f"{8 + length + end}; copy it again"
        )
    return found
