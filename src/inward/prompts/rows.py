"""Rows of files, datasets and functions, each with where it came from. No code that comes with data is ever run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inward.config import DatasetSource, PythonSource
from inward.errors import MissingExtraError, UsageError
from inward.functions import user_errors, user_function

Rows = Iterator[tuple[str, Mapping[str, Any]]]
JSON_LINES = (".jsonl", ".json", ".ndjson")
END: Any = object()
"""Told apart from every item that a function can give, None among them."""


def file_rows(name: str) -> Rows:
    """Yield `(place, row)` of a JSON-lines or Parquet file, told apart by its ending. UsageError for what cannot be read."""
    path = Path(name)
    if path.suffix.lower() not in (*JSON_LINES, ".parquet"):
        raise UsageError(f"{path}: prompts are read from files ending in {', '.join(JSON_LINES)} (JSON lines) or .parquet")
    try:
        yield from (_parquet(path) if path.suffix.lower() == ".parquet" else _json_lines(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def dataset_rows(source: DatasetSource) -> Rows:
    """Yield `(place, row)` of a Hugging Face dataset: a Hub name, or a local folder. Its own code, if any, is never run."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingExtraError("datasets", "datasets") from None
    if hasattr(datasets.config, "HF_DATASETS_TRUST_REMOTE_CODE"):
        datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # releases before 4 ask, or obey the environment
    data = _saved(source) if _is_saved(Path(source.path)) else _loaded(source)
    for number, row in enumerate(data):
        yield f"{source.path} ({source.split}), row {number}", row


def function_rows(source: PythonSource) -> Rows:
    """Yield `(where, row)` of what a user's function returns or yields; a text is a row with nothing but its prompt.

    UsageError, with the function's own file and line, for whatever it raises and for an item that is neither text nor table.
    """
    function = user_function(source.function)
    items = function()
    if isinstance(items, str | Mapping) or not isinstance(items, Iterable):
        raise UsageError(
            f"function = {source.function!r} ({function.where}) returned {type(items).__name__}: it must return or yield "
            "prompts, each a text or a table"
        )
    with user_errors(source.function, function.file):
        iterator = iter(items)
    for number in itertools.count(1) if source.count is None else range(1, source.count + 1):
        with user_errors(source.function, function.file):
            item = next(iterator, END)
        where = f"{source.function}, item {number}"
        if item is END:
            return
        if not isinstance(item, str | Mapping):
            raise UsageError(f"{where} ({function.where}): it is {type(item).__name__}, but must be a text or a table")
        yield where, {"prompt": item} if isinstance(item, str) else item


def _json_lines(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise UsageError(f"{where}: this is not UTF-8: {error.reason} at byte {error.start}") from None
            except RecursionError:
                raise UsageError(f"{where}: this JSON is nested too deep") from None
            except ValueError as error:
                raise UsageError(f"{where}: this is not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise UsageError(f'{where}: each line must be an object such as {{"prompt": "..."}}')
            yield where, row


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except pa.ArrowException as error:
        raise UsageError(f"{path}, row {number} or after: this is not a sound Parquet file: {error}") from error


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _saved(source: DatasetSource) -> Any:
    """Open what `save_to_disk` wrote: one dataset, or several splits."""
    import datasets

    if source.name is not None:
        raise UsageError(f"{source.path} was written by save_to_disk and has no configurations: leave out name")
    try:
        data = datasets.load_from_disk(source.path)
    except (OSError, ValueError) as error:
        raise UsageError(f"dataset {source.path} cannot be read: {error}") from error
    if not isinstance(data, datasets.DatasetDict):
        return data
    if source.split not in data:
        raise UsageError(f"dataset {source.path} has no split {source.split!r}; it has {', '.join(data)}")
    return data[source.split]


def _loaded(source: DatasetSource) -> Any:
    import datasets
    import httpx

    try:
        return datasets.load_dataset(source.path, name=source.name, split=source.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, httpx.HTTPError) as error:
        raise UsageError(
            f"dataset {source.path} (split {source.split}) cannot be loaded: {error}. "
            "Check its name, configuration and split; a folder must hold data files or what save_to_disk wrote"
        ) from error
