"""What a model folder holds, in the names and shapes of the dense model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asvd_q.errors import ModelError, first_line
from asvd_q.models.config import CODE_KEYS, RANK_KEYS, dense_fields, load_config, read_fields
from asvd_q.models.stored.base import Format, Matrix, Settings
from asvd_q.models.stored.bitsandbytes import bitsandbytes_matrices
from asvd_q.models.stored.compressed_tensors import packed_matrices
from asvd_q.models.stored.factors import A, B, factor_matrices
from asvd_q.models.stored.gptq import gptq_matrices
from asvd_q.models.stored.orientation import kept_transposed, transposed
from asvd_q.models.tensors import TensorInfo, index_tensors

__all__ = ["FORMATS", "Codes", "Contents", "read_contents"]

FORMATS: Mapping[str, Format] = {
    "gptq": gptq_matrices,
    "bitsandbytes": bitsandbytes_matrices,
    "compressed-tensors": packed_matrices,
}
"""By the `quant_method` of a quantization configuration."""


@dataclass(frozen=True)
class Codes:
    """Of a model that was quantized before it came here.

    Attributes:
        method: as its configuration names it.
        bits: widths of the codes, ascending.
        layers: number of matrices in codes.
        settings: all that the configuration says.
    """

    method: str
    bits: tuple[int, ...]
    layers: int
    settings: Settings


@dataclass(frozen=True)
class Contents:
    """What a model folder holds.

    Attributes:
        files: the weight files.
        config: content of `config.json`, as it is for the dense model.
        tensors: every tensor of the dense model, by its name in the files.
        codes: None for a model in floating point.
        factors: A (out, rank) and B (rank, in) of layers that are stored as those alone; by the
            name of the layer in the files.
    """

    files: tuple[Path, ...]
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    codes: Codes | None = None
    factors: Mapping[str, tuple[TensorInfo, TensorInfo]] = field(default_factory=dict)


def read_contents(folder: Path, *, trust_remote_code: bool) -> Contents:
    """List a folder's tensors. Reads headers, and the small tensors that shapes depend on.

    Raises:
        ModelError: no weights, a damaged file, or a way to quantize that is not read here.
    """
    fields = read_fields(folder)
    stored = index_tensors(folder)
    tensors, codes = dict(stored), None
    settings = _settings(folder, fields)
    if settings is not None:
        method = _method(settings)
        matrices = _format(folder, method)(tensors, settings)
        tensors = _with(tensors, matrices)
        if matrices:
            bits = sorted({matrix.bits for matrix in matrices if matrix.bits is not None})
            codes = Codes(method, tuple(bits), len(matrices), settings)
    factors: dict[str, tuple[TensorInfo, TensorInfo]] = {}
    if any(fields.get(key) for key in RANK_KEYS):
        matrices = factor_matrices(tensors, fields)
        factors = {
            matrix.layer: (tensors[f"{matrix.layer}.{A}"], tensors[f"{matrix.layer}.{B}"])
            for matrix in matrices
            if f"{matrix.layer}.weight" not in tensors
        }
        tensors = _with(tensors, matrices)
    made = [name for name, info in tensors.items() if stored.get(name) is not info]
    if made:
        config = load_config(folder, trust_remote_code=trust_remote_code)
        kept = kept_transposed(config, trust_remote_code=trust_remote_code)
        tensors |= {name: transposed(tensors[name]) for name in made if name in kept}
    return Contents(
        files=tuple(sorted({info.file for info in stored.values()})),
        config=dense_fields(fields),
        tensors=tensors,
        codes=codes,
        factors=factors,
    )


def _settings(folder: Path, fields: Mapping[str, Any]) -> Settings | None:
    """How the weights were quantized; None when nothing says that they were.

    AutoGPTQ once wrote that into a file of its own, without naming the method.
    """
    path = folder / "quantize_config.json"
    found = next((fields[key] for key in CODE_KEYS if fields.get(key)), None)
    if found is None and path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path} is damaged: {first_line(error)}") from error
    if found is not None and not isinstance(found, dict):
        raise ModelError(f"model.path: {folder}: its quantization settings are no mapping")
    return found


def _method(settings: Settings) -> str:
    """Older settings leave it out."""
    theirs = any(key in settings for key in ("load_in_4bit", "load_in_8bit"))
    return str(settings.get("quant_method", "bitsandbytes" if theirs else "gptq"))


def _format(folder: Path, method: str) -> Format:
    if method not in FORMATS:
        raise ModelError(
            f"model.path: {folder} is quantized with {method}, which is not read; read are "
            f"{', '.join(FORMATS)}: start from the unquantized model, or convert it to one of those"
        )
    return FORMATS[method]


def _with(tensors: Mapping[str, TensorInfo], matrices: list[Matrix]) -> dict[str, TensorInfo]:
    """Matrices in the place of the tensors that they are made from."""
    place = {name: matrix for matrix in matrices for name in (*matrix.parts, *matrix.renamed)}
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        matrix = place.get(name)
        if matrix is None:
            found[name] = info
        elif name in matrix.renamed:
            found[matrix.renamed[name]] = replace(info)
        else:
            found.setdefault(
                f"{matrix.layer}.weight",
                TensorInfo(info.file, matrix.shape, matrix.dtype, matrix.load),
            )
    return found
