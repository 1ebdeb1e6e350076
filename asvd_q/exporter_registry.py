"""Finds exporters among the installed packages.

Each is an entry point of the group `asvd_q.exporters`, whose name is the word a recipe uses and
whose value is a class with the protocol `asvd_q.artefact.Exporter`. The library imports none of
them itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points

from pydantic import BaseModel

from asvd_q.artefact import Exporter
from asvd_q.errors import ExportError, first_line

__all__ = [
    "ENTRY_POINT_GROUP",
    "available_exporters",
    "build_exporter",
    "exporter_class",
    "timed_exporters",
]

ENTRY_POINT_GROUP = "asvd_q.exporters"

_OF_CLASSES = ("can_express", "stored_bytes", "write", "open", "read")
_OF_INSTANCES = ("options", "bounds", "float_type")


def available_exporters() -> list[str]:
    """Names of all installed exporters, of which some may not load."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def timed_exporters() -> list[str]:
    """Names of the installed exporters that are a `TimedExporter`."""
    found = []
    for name in available_exporters():
        with suppress(ExportError):  # of a package that is not in use
            if hasattr(exporter_class(name), "kernel"):
                found.append(name)
    return found


def exporter_class(name: str) -> type[Exporter]:
    """The exporter registered under `name`.

    Raises:
        ExportError: no installed package registers it, several do, or what the package registers
            cannot be loaded or is no exporter; the message names the package.
    """
    points = {point.value: point for point in entry_points(group=ENTRY_POINT_GROUP, name=name)}
    if not points:
        raise ExportError(
            f"no exporter is called {name!r}: installed are {', '.join(available_exporters())}"
        )
    if len(points) > 1:
        packages = " and ".join(sorted(_package(point) for point in points.values()))
        raise ExportError(
            f"the packages {packages} each bring an exporter called {name!r}: uninstall all but "
            "one of them, or ask for another name"
        )
    (point,) = points.values()
    try:
        loaded = point.load()
    except Exception as error:  # whatever a package does when it is imported
        raise _unusable(
            point, f"cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error
    wrong = _what_is_wrong(loaded, name)
    if wrong is not None:
        raise _unusable(point, wrong)
    found: type[Exporter] = loaded
    return found


def build_exporter(name: str, options: Mapping[str, object]) -> Exporter:
    """The exporter registered under `name`, with its options.

    Raises:
        ExportError: as `exporter_class`.
        ValidationError: of pydantic: an option that it does not have, or a wrong value.
    """
    cls = exporter_class(name)
    exporter = cls(cls.options_model.model_validate(dict(options)))
    missing = [member for member in _OF_INSTANCES if not hasattr(exporter, member)]
    if missing:
        (point, *_) = entry_points(group=ENTRY_POINT_GROUP, name=name)
        raise _unusable(point, f"lacks {', '.join(missing)}")
    return exporter


def _what_is_wrong(loaded: object, name: str) -> str | None:
    """Why an object cannot be the exporter of that name."""
    if not isinstance(loaded, type):
        return f"is no class, its type is {type(loaded).__name__}"
    missing = [member for member in _OF_CLASSES if not callable(getattr(loaded, member, None))]
    if missing:
        return f"lacks {', '.join(missing)}"
    if getattr(loaded, "name", None) != name:
        return f"has the name {getattr(loaded, 'name', None)!r} of its own"
    model = getattr(loaded, "options_model", None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return f"has no pydantic model as options_model, but {model!r}"
    return None


def _unusable(point: EntryPoint, why: str) -> ExportError:
    return ExportError(
        f"the exporter {point.name!r} of the package {_package(point)} ({point.value}) {why}"
    )


def _package(point: EntryPoint) -> str:
    return "of an unknown name" if point.dist is None else str(point.dist.name)
