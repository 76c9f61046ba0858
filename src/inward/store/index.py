"""What of a run is finished in a store: one small object, `.inward/index.json`, that names it all.

An object that the index does not name is not there, whoever may see it in a listing: so a folder of many objects, and a whole
run, exist at one instant or not at all. Of what is written once (shards, and folders of weights) the index holds size and
SHA-256. All else is replaced in one piece, or grows, and is taken as it is, since it may be newer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from inward.errors import StorageError
from inward.models.identity import file_digest
from inward.storage import TEMPORARY, storage_errors
from inward.store.remote import Store

OWN = ".inward"
"""The folder in a store that holds what is not the run's: the index and the lock."""
INDEX = f"{OWN}/index.json"
LOCAL_ONLY = (".lock", ".store.json")
"""Files at the root of a run's copy on this machine that are about the copy."""
TRANSFERS = 8
"""Objects that travel side by side."""
_WHOLE = re.compile(r"(.*/)?(iter_\d+/(model|optimiser)|checkpoints/(optimiser/)?epoch_\d+|checkpoints/state/step_\d+)(?=/)")
Entry: TypeAlias = tuple[int, str] | None
"""Size in bytes and SHA-256 of what is written once; None for what is replaced."""


@dataclass(frozen=True, slots=True)
class Index:
    """The finished files of a run, and which copy of it published them."""

    copy: str
    files: Mapping[str, Entry]


class Changed(Exception):
    """Objects are not those that the index named: another one was published meanwhile."""


def whole_folder_of(name: str) -> str | None:
    """Return the folder a file belongs to that exists whole or not at all: a model, a checkpoint or a state of training."""
    match = _WHOLE.match(name)
    return match[0] if match else None


def is_replaced(name: str) -> bool:
    """Return whether a file may get another content under its name, in one piece or by rows at its end."""
    return whole_folder_of(name) is None and not name.rpartition("/")[2].startswith("part-")


def read_index(store: Store) -> Index | None:
    """Return what is finished; None where no run was ever published."""
    data = store.read(INDEX)
    if data is None:
        return None
    tree = json.loads(data)
    return Index(tree["copy"], {name: tuple(entry) if entry else None for name, entry in tree["files"].items()})


def write_index(store: Store, index: Index) -> None:
    store.write(INDEX, json.dumps({"copy": index.copy, "files": dict(index.files)}, sort_keys=True).encode())


def fetch(store: Store, entries: Mapping[str, Entry], folder: Path) -> None:
    """Make `folder` hold these files, and nothing else; what it holds already is not fetched again.

    Raises Changed where the store holds something else by now, StorageError.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_others(folder, entries)
        for name in entries:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(TRANSFERS) as pool:
        for _ in pool.map(lambda name: _fetch_file(store, name, entries[name], folder / name), entries):
            pass


def read_finished(store: Store, folder: Path, *, weights: bool) -> Index:
    """Make `folder` hold a run as it is published, for reading; without `weights`, model folders and the like stay empty.

    Raises StorageError; where there is no run, the index is empty.
    """
    for _ in range(3):
        index = read_index(store) or Index("", {})
        wanted = {name: entry for name, entry in index.files.items() if weights or whole_folder_of(name) is None}
        try:
            fetch(store, wanted, folder)
        except Changed:
            continue
        with storage_errors(folder):
            for name in index.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
        return index
    raise StorageError(f"{store.url} changes faster than it can be read: run the same command again")


def _fetch_file(store: Store, name: str, entry: Entry, path: Path) -> None:
    if entry is not None and _holds(path, entry):
        return
    temporary = path.with_name(TEMPORARY + path.name)
    with storage_errors(path):
        if not store.download(name, temporary) or (entry is not None and not _holds(temporary, entry)):
            temporary.unlink(missing_ok=True)
            raise Changed(name)
        temporary.replace(path)


def _holds(path: Path, entry: tuple[int, str]) -> bool:
    return path.is_file() and path.stat().st_size == entry[0] and file_digest(path) == entry[1]


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    kept = {folder / name for name in (*names, *LOCAL_ONLY)}
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in kept:
            path.unlink()
