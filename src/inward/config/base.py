"""What all settings share: strict, frozen, no key that is not known, and the mark of those that alter nothing stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

Arm = Literal["thinking", "direct"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
EngineKind = Literal["transformers", "vllm", "endpoint"]
Batching = Literal["shared", "packed", "padded"]
Quantisation = Literal["nf4"]
VerdictForm = Literal["ab", "abc", "arena"]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True, slots=True)
class Harmless:
    """The mark of a setting that alters nothing stored: `cache: Annotated[bool, Harmless()] = True`.

    A run may go on with another value of it. On a table it holds for all that is in the table.
    """


def is_harmless(model: type[BaseModel], name: str) -> bool:
    """Return whether the setting `name` of a class carries the mark."""
    return any(isinstance(mark, Harmless) for mark in model.model_fields[name].metadata)


def harmless_keys(settings: BaseModel, prefix: str = "") -> frozenset[str]:
    """Return the keys, such as "judge.first.cache", of all settings in a tree that alter nothing stored.

    Tables and lists of tables are walked, a list's items by their number. Of a marked table there are its own key and those of
    all that it holds.
    """
    return frozenset(key for key, harmless in _keys(settings, prefix, marked=False) if harmless)


def kind_of(model: type[BaseModel]) -> str:
    """Return what `kind` chooses a class of settings by."""
    (kind,) = get_args(model.model_fields["kind"].annotation)
    return str(kind)


def kinds_of(union: Any) -> tuple[str, ...]:
    """Return the kinds of all classes of a union of settings, in their order."""
    members = get_args(union)[0] if hasattr(union, "__metadata__") else union
    return tuple(kind_of(model) for model in get_args(members))


def _keys(value: Any, key: str, *, marked: bool) -> Iterator[tuple[str, bool]]:
    if key:
        yield key, marked
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            inner = f"{key}.{name}" if key else name
            yield from _keys(getattr(value, name), inner, marked=marked or is_harmless(type(value), name))
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            if isinstance(item, BaseModel):
                yield from _keys(item, f"{key}.{number}", marked=marked)


def refuse_without_effect(settings: Settings, keys: Sequence[str], reason: str, table: str = "judge") -> None:
    """Refuse keys of a `table` that a recipe sets to something and that would have no effect.

    A key that is set to its default is let through: the configuration that a run stores holds all keys.
    """
    for key in keys:
        value = getattr(settings, key)
        if key in settings.model_fields_set and value != type(settings).model_fields[key].default:
            raise ValueError(f"{table}.{key} has no effect, because {reason}. Leave {table}.{key} out")
