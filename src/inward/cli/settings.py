"""`inward recipes settings`: every setting of a recipe, read off the settings themselves, so that it cannot be out of date."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from inward.config.base import is_harmless

OPENING = """# Settings
Every key that a recipe can hold, with its type and default. Made by `inward recipes settings`. A key or a table marked with
\u2020 alters nothing that is stored: a run may go on with another value of it."""
MARK = " \u2020"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of a recipe. `elsewhere` says where its keys stand, if they stand under another title."""

    title: str
    model: type[BaseModel]
    elsewhere: str = ""


def document() -> str:
    """Return the reference of all settings as Markdown: a section for each table of a recipe."""
    from inward.config import Recipe

    sections = [OPENING]
    for table in _tables(Recipe, "", {}):
        if table.elsewhere:
            sections.append(f"## {table.title}\n{table.elsewhere}")
            continue
        rows = [_row(table.model, name) for name, field in table.model.model_fields.items() if not _models(field.annotation)]
        head = f"## {table.title or 'The recipe itself'}\n{inspect.cleandoc(table.model.__doc__ or '')}"
        sections.append("\n".join([head, "", "| key | type | default |", "|---|---|---|", *rows]) if rows else head)
    return "\n\n".join(sections) + "\n"


def _tables(
    model: type[BaseModel], path: str, paths: dict[type[BaseModel], str], chosen: str = "", mark: str = ""
) -> Iterator[Table]:
    """Yield each table once. `chosen` says which kind or class of a table, or of one around it, it is.

    Where all classes that a table can be of stand elsewhere (a judge inside a judge), there is one title for them all.
    """
    paths[model] = path
    yield Table(title=f"[{path}]{chosen}{mark}" if path else "", model=model)
    for name, field in model.model_fields.items():
        inner, key = _models(field.annotation), f"{path}.{name}".lstrip(".")
        if inner and all(cls in paths for cls in inner):
            kinds = ", ".join(kind for cls in inner if (kind := _kind(cls)))
            of_kind = f", with kind = {kinds}" if kinds else ""
            title = f"[{key}]{chosen.replace('with kind', f'with {path}.kind')}"
            yield Table(title=title, model=inner[0], elsewhere=f"As [{paths[inner[0]]}]{of_kind}.")
            continue
        for cls in inner:
            nested = chosen.replace("with kind", f"with {path}.kind")
            if kind := _kind(cls):
                nested = f" with kind = {kind}"
            elif len(inner) > 1:
                nested = f" ({cls.__name__})"
            yield from _tables(cls, key, paths, nested, MARK if is_harmless(model, name) else "")


def _kind(model: type[BaseModel]) -> str:
    """Return the kind that a class stands for, as TOML, or nothing where it is the only one."""
    field = model.model_fields.get("kind")
    return json.dumps(typing.get_args(field.annotation)[0]) if field is not None else ""


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]


def _row(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    default = (
        "required" if field.is_required() else f"`{_toml(field.get_default(call_default_factory=True, validated_data={}))}`"
    )
    mark = MARK if is_harmless(model, name) else ""
    choices = ", ".join(f"`{json.dumps(choice)}`" for choice in field.examples or ())  # of a table that can grow
    return f"| `{name}`{mark} | {choices or _type(field.annotation)}{_bounds(field)} | {default} |"


def _toml(value: Any) -> str:
    if value is None:
        return "unset"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _type(annotation: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "", Any: "any values"}
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
    bounds = [
        f"{sign} {getattr(rule, name):g}" for rule in field.metadata for name, sign in signs.items() if hasattr(rule, name)
    ]
    return f", {', '.join(bounds)}" if bounds else ""
