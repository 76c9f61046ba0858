"""`inward recipes settings`: every setting of a recipe, read off the settings themselves, so that it cannot be out of date."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def document() -> str:
    """Return the reference of all settings as Markdown: a section for each table of a recipe."""
    from inward.config import Recipe

    sections = ["# Settings\nEvery key that a recipe can hold, with its type and default. Made by `inward recipes settings`."]
    for title, model, known in _tables(Recipe, "", {}):
        if known:
            sections.append(f"## {title}\n{known}")
            continue
        rows = [_row(name, field) for name, field in model.model_fields.items() if not _models(field.annotation)]
        text = _prose(model.__doc__ or "")
        head = f"## {title or 'The recipe itself'}\n{text}"
        sections.append("\n".join([head, "", "| key | type | default |", "|---|---|---|", *rows]) if rows else head)
    return "\n\n".join(sections) + "\n"


def _tables(
    model: type[BaseModel], path: str, places: dict[type[BaseModel], str], chosen: str = ""
) -> Iterator[tuple[str, type[BaseModel], str]]:
    """Yield a title and a class for each table. `chosen` says which kind or class of a table, or of one around it, it is.

    Where all classes that a table can be of stand elsewhere (a judge inside a judge), one title and where they stand.
    """
    places[model] = path
    yield f"[{path}]{chosen}" if path else "", model, ""
    for name, field in model.model_fields.items():
        inner, at = _models(field.annotation), f"{path}.{name}".lstrip(".")
        if inner and all(found in places for found in inner):
            kinds = ", ".join(kind for found in inner if (kind := _kind(found)))
            of_kind = f", with kind = {kinds}" if kinds else ""
            yield f"[{at}]{chosen.replace('with kind', f'with {path}.kind')}", inner[0], f"As [{places[inner[0]]}]{of_kind}."
            continue
        for found in inner:
            here = chosen.replace("with kind", f"with {path}.kind")
            if kind := _kind(found):
                here = f" with kind = {kind}"
            elif len(inner) > 1:
                here = f" ({found.__name__})"
            yield from _tables(found, at, places, here)


def _kind(model: type[BaseModel]) -> str:
    """Return the kind that a class stands for, as TOML, or nothing where it is the only one."""
    field = model.model_fields.get("kind")
    return json.dumps(typing.get_args(field.annotation)[0]) if field is not None else ""


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]


def _row(name: str, field: FieldInfo) -> str:
    default = (
        "required" if field.is_required() else f"`{_toml(field.get_default(call_default_factory=True, validated_data={}))}`"
    )
    return f"| `{name}` | {_type(field.annotation)}{_bounds(field)} | {default} |"


def _toml(value: Any) -> str:
    if value is None:
        return "unset"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _type(annotation: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): ""}
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(argument)}`" for argument in arguments)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(part for part in map(_type, arguments) if part)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    assert origin is dict, annotation
    return f"table of {_type(arguments[1])}"


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [
        f"{sign} {getattr(rule, name):g}" for rule in field.metadata for name, sign in signs.items() if hasattr(rule, name)
    ]
    return f", {', '.join(found)}" if found else ""


def _prose(docstring: str) -> str:
    import inspect

    return inspect.cleandoc(docstring)
