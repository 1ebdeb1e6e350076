"""How an artefact is loaded, as its model card says it: what an exporter knows of its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from asvd_q.artefact import Exporter

__all__ = ["DescribedExporter", "Snippet", "Usage", "usage_of"]


@dataclass(frozen=True)
class Snippet:
    """A program that loads the artefact and lets it write, run in the artefact's folder.

    Attributes:
        title: the runtime.
        needs: packages that it imports, or that those need for this format.
        code: the program.
        note: what has to be known before it is run.
        language: of the program, as fenced blocks name it.
    """

    title: str
    needs: tuple[str, ...]
    code: str
    note: str = ""
    language: str = "python"


@dataclass(frozen=True)
class Usage:
    """What a model card says of a format.

    Attributes:
        snippets: the runtime that the format is made for first.
        library: `library_name` of the hub; None where the hub has none for it.
        tags: by which the hub's users find such files.
        relation: `base_model_relation` where the format settles it; else codes do.
    """

    snippets: tuple[Snippet, ...]
    library: str | None = None
    tags: tuple[str, ...] = ()
    relation: Literal["quantized", "adapter"] | None = None


@runtime_checkable
class DescribedExporter(Protocol):
    """What an exporter has besides, that knows how its artefacts are loaded."""

    def usage(self, folder: Path) -> Usage:
        """What the model card of an artefact says; loads no runtime.

        Args:
            folder: the written artefact, without its card.
        """
        ...


def usage_of(exporter: Exporter, folder: Path) -> Usage:
    """What the exporter says; of one that says nothing, how this package runs the artefact."""
    if isinstance(exporter, DescribedExporter):
        return exporter.usage(folder)
    code = "asvd-q generate . --prompt 'The first thing'\n"
    return Usage((Snippet("asvd-q", ("asvd-q",), code, language="bash"),), tags=(exporter.name,))
