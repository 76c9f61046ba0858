"""Records to Parquet shards and back. A shard exists whole or not at all.

The name of a shard says which of how many it is, and holds a hash of the ids of what it was made from, so that "resume" is
nothing but doing the shards that are missing. The same records always give the same bytes: no time, host or version is
written into the file. A field whose default is None has no column where no record of the shard sets it, and a column that is
not there reads as None: so a field that is added for those who ask for it changes no file of the others, old or new.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from inward.records import content_id
from inward.storage import storage_errors, write_bytes

if typing.TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


def shard_name(number: int, count: int | None, ids: Sequence[str]) -> str:
    """Name the shard that is `number` of `count`, from 0, and made from these ids: `part-00003-of-00008-<hash>`.

    A stage that may grow later has no count: `part-00003-<hash>`.
    """
    of = "" if count is None else f"-of-{count:05d}"
    return f"part-{number:05d}{of}-{content_id(*ids)[:8]}"


def shard_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.parquet"


def remove_others(folder: Path, names: Sequence[str]) -> None:
    """Remove the shards of a finished stage that were made from something else: readers would take them for parts of it.

    There are such shards where a part of an earlier stage was deleted and came out otherwise, by rounding say. A stage that may
    grow later (its shards have no count) keeps all.
    """
    with storage_errors(folder):
        for path in folder.glob("part-*-of-*.parquet"):
            if path.stem not in names:
                path.unlink()


def stored_parts(folder: Path) -> tuple[int, int | None]:
    """Return how many shards a folder holds, and of how many: None where it holds none, so that nobody knows yet."""
    counts = [int(path.name.split("-")[3]) for path in folder.glob("part-*-of-*.parquet")]
    return len(counts), max(counts, default=None)


def write_shard(path: Path, record_type: type[Any], records: Sequence[Any]) -> None:
    """Write records of one type as a Parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    unset = [
        field.name
        for field in dataclasses.fields(record_type)
        if field.default is None and all(getattr(record, field.name) is None for record in records)
    ]
    schema = pa.schema([field for field in schema_of(record_type) if field.name not in unset])
    table = pa.Table.from_pylist([_plain(record) for record in records], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    write_bytes(path, sink.getvalue().to_pybytes())


def read_shard(path: Path, record_type: type[T]) -> list[T]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, schema=schema_of(record_type))
    return [_build(record_type, row) for row in table.to_pylist()]


def read_stage(folder: Path, record_type: type[T]) -> list[T]:
    """Read all shards of a stage in their order. An absent folder holds nothing."""
    return [record for path in sorted(folder.glob("part-*.parquet")) for record in read_shard(path, record_type)]


def schema_of(record_type: type[Any]) -> pa.Schema:
    """Return the Arrow schema that a record's annotations stand for."""
    import pyarrow as pa

    hints = typing.get_type_hints(record_type)
    return pa.schema(
        [
            pa.field(field.name, _arrow(hints[field.name]), nullable=_optional(hints[field.name]))
            for field in dataclasses.fields(record_type)
        ]
    )


def _optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union) and type(None) in typing.get_args(hint)


def _inner(hint: Any) -> Any:
    """Return what an optional hint is when it is not None."""
    (inner,) = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    return inner


def _arrow(hint: Any) -> pa.DataType:
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if hint in plain:
        return plain[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return pa.string()
    if _optional(hint):
        return _arrow(_inner(hint))
    if origin is tuple:
        narrow = {int: pa.int32(), float: pa.float32()}  # token ids, and log-probabilities that were taken in fp32
        return pa.list_(narrow.get(arguments[0]) or _arrow(arguments[0]))
    if origin is dict:
        return pa.map_(_arrow(arguments[0]), _arrow(arguments[1]))
    assert dataclasses.is_dataclass(hint), f"no Parquet form for {hint}"
    return pa.struct(list(schema_of(typing.cast(type, hint))))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return [_plain(item) for item in value]
    return value


def _build(record_type: type[T], row: dict[str, Any]) -> T:
    hints = typing.get_type_hints(record_type)
    return record_type(**{name: _revive(hints[name], value) for name, value in row.items()})


def _revive(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if _optional(hint):
        hint = _inner(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        inner = arguments[0]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            return tuple(_build(inner, item) for item in value)
        return tuple(value)
    if origin is dict:
        return dict(value)
    return value
