"""Which artefacts are written."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from asvd_q.recipe.base import Section, Text

__all__ = ["ExportSection", "OptionValue"]

OptionValue = str | int | float | bool | None


def _format_of(fields: dict[str, Any]) -> str:
    return str(fields.get("format", ""))


class ExportSection(Section):
    """One artefact. Further keys are options of the format, which its exporter checks."""

    model_config = ConfigDict(extra="allow")

    format: Text
    """Name of an installed exporter: onnx, gptq, transformers, …"""

    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        default_factory=_format_of
    )
    """Folder of the artefact inside the run's; the format's name unless it is given."""

    @model_validator(mode="after")
    def _scalar_options(self) -> ExportSection:
        for key, value in self.options.items():
            if value is not None and not isinstance(value, (str, int, float)):
                raise ValueError(f"the option {key!r} must be a plain value, not a list or mapping")
        return self

    @property
    def options(self) -> dict[str, OptionValue]:
        """What the exporter's own options model is built from."""
        return dict(self.model_extra or {})
