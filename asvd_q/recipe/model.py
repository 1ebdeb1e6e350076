"""Which model is compressed."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationInfo, field_validator

from asvd_q.plan import FloatType
from asvd_q.recipe.base import Bool, Section, Text
from asvd_q.recipe.paths import resolve_path

__all__ = ["ModelSection"]


class ModelSection(Section):
    """The source model: a folder with config.json and safetensors, or a model of the hub."""

    path: Text
    """Model folder, relative to the recipe file or to the current directory, or a hub name."""

    revision: Text | None = None
    """Branch, tag or commit of a hub model."""

    dtype: Literal["auto", FloatType] = "auto"
    """Type in which everything that is not quantized is stored; auto keeps the source's."""

    trust_remote_code: Bool = False
    """Run code that the model repository brings along."""

    @field_validator("path")
    @classmethod
    def _relative_to_recipe(cls, path: str, info: ValidationInfo) -> str:
        return resolve_path(path, info)
