"""A row of a file or dataset to a `Prompt`: which column holds what, and what may stand in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inward.errors import UsageError
from inward.records import Constraint, Prompt, content_id

DEFAULTS = {
    "prompt": "prompt",
    "answer": "answer",
    "answers": "answers",
    "constraints": "instruction_id_list",
    "kwargs": "kwargs",
    "source": "source",
}
NAMES = ("prompt", "id", "answer", "answers", "constraints", "kwargs", "source")


def known_columns(columns: Mapping[str, str], where: str) -> dict[str, str]:
    """Return the mapping of our names to column names, as given; UsageError for a name that is none of ours."""
    unknown = sorted(set(columns) - set(NAMES))
    if unknown:
        raise UsageError(f"{where}: columns maps {', '.join(unknown)}, but only {', '.join(NAMES)} can be mapped")
    return dict(columns)


def to_prompt(row: Mapping[str, Any], columns: Mapping[str, str], *, where: str, source: str) -> Prompt:
    """Make a prompt of one row. A column that `columns` names must be there; the usual names count where they are present.

    The id is a hash of the text, so that it is the same in every file and run; a row's own id is taken only where `columns`
    maps `id`. UsageError, with the place, for what is missing or of a wrong type.
    """
    for ours, column in {"prompt": DEFAULTS["prompt"], **columns}.items():
        if column not in row:
            hint = f'; map it with columns = {{ {ours} = "..." }}' if ours not in columns else ""
            raise UsageError(
                f"{where}: there is no column {column!r} for {ours}. The columns are {', '.join(map(str, row))}{hint}"
            )
    values = {name: row.get(columns.get(name, DEFAULTS.get(name, ""))) for name in NAMES}
    text = _text(values["prompt"], where, "prompt")
    answers = [_text(item, where, "answers") for item in _items(values["answers"], where, "answers")]
    if values["answer"] is not None:
        answers.insert(0, _text(values["answer"], where, "answer"))
    return Prompt(
        id=_id(values["id"], where) if "id" in columns else content_id(text),
        text=text,
        source=source if values["source"] is None else _text(values["source"], where, "source"),
        answers=tuple(dict.fromkeys(answers)),
        constraints=_constraints(values["constraints"], values["kwargs"], where),
    )


def _id(value: object, where: str) -> str:
    text = _text(value, where, "id")
    if not text:
        raise UsageError(f"{where}: the id is empty")
    return text


def _text(value: object, where: str, name: str) -> str:
    """Return the value as text: strings as they are, whole and decimal numbers as written (but for the prompt itself)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "prompt":
        return str(value)
    if not isinstance(value, str):
        raise UsageError(f"{where}: {name} must be text, not {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{where}: {name} holds half of a surrogate pair, which is not text") from None
    return value


def _items(value: object, where: str, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{where}: {name} must be a list, not {_kind(value)}")
    return list(value)


def _constraints(checkers: object, kwargs: object, where: str) -> tuple[Constraint, ...]:
    names = _items(checkers, where, "constraints")
    if not names:
        return ()
    arguments = [_object(item, where) for item in _items(kwargs, where, "kwargs")] or [{} for _ in names]
    if len(arguments) != len(names):
        raise UsageError(f"{where}: there are {len(names)} constraints but {len(arguments)} kwargs; they go in parallel")
    return tuple(
        Constraint(id=_text(name, where, "constraints"), arguments=_json(values, where))
        for name, values in zip(names, arguments, strict=True)
    )


def _object(value: object, where: str) -> dict[str, Any]:
    """Return one item of `kwargs`: an object, or an object as JSON text; what is null in it is as good as absent."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UsageError(f"{where}: an item of kwargs is not valid JSON") from None
    if value is not None and not isinstance(value, Mapping):
        raise UsageError(f"{where}: an item of kwargs must be an object, not {_kind(value)}")
    return {name: item for name, item in (value or {}).items() if item is not None}


def _json(value: dict[str, Any], where: str) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        raise UsageError(f"{where}: kwargs hold what JSON cannot: {value!r}") from None


def _kind(value: object) -> str:
    return "empty (null)" if value is None else type(value).__name__
