"""Finds the models and fields behind a location in a validation error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import isclass
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["allowed_keys", "bounds", "field_at", "models_at"]


def models_at(
    model: type[BaseModel] | None, location: Sequence[int | str]
) -> list[type[BaseModel]]:
    """The models that the value at a location may be; none where it is a plain value.

    Indices, keys of mappings and tags of unions in the location are passed over.
    """
    return _walk(model, location)[0]


def field_at(model: type[BaseModel] | None, location: Sequence[int | str]) -> FieldInfo | None:
    """The last field on the way to a location."""
    return _walk(model, location)[1]


def allowed_keys(models: Sequence[type[BaseModel]]) -> list[str]:
    """Keys that any of the models takes, `corpus` beside `corpora`."""
    keys = [name for model in models for name in model.model_fields]
    return [*(["corpus"] if "corpora" in keys else []), *dict.fromkeys(keys)]


def bounds(field: FieldInfo | None, fallback: str) -> str:
    """The whole range that a number may lie in, in words."""
    low = high = ""
    for constraint in _constraints(field):
        match constraint:
            case Ge(ge=value):
                low = f"at least {value}"
            case Gt(gt=value):
                low = f"above {value}"
            case Le(le=value):
                high = f"at most {value}"
            case Lt(lt=value):
                high = f"below {value}"
    if not low and not high:
        return fallback
    return "allowed is " + " and ".join(filter(None, (low, high)))


def _walk(
    model: type[BaseModel] | None, location: Sequence[int | str]
) -> tuple[list[type[BaseModel]], FieldInfo | None]:
    models = [] if model is None else [model]
    field: FieldInfo | None = None
    for part in location:
        found = next((m.model_fields[part] for m in models if part in m.model_fields), None)
        if found is not None:
            field = found
            models = list(_models(field.annotation))
    return models, field


def _models(hint: Any) -> Iterator[type[BaseModel]]:
    if isclass(hint) and issubclass(hint, BaseModel):
        yield hint
    for inner in get_args(hint):
        yield from _models(inner)


def _constraints(hint: Any) -> Iterator[Any]:
    if isinstance(hint, FieldInfo):
        yield from hint.metadata
        yield from _constraints(hint.annotation)
        return
    for inner in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        if isinstance(inner, (Ge, Gt, Le, Lt)):
            yield inner
        else:
            yield from _constraints(inner)
