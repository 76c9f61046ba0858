"""The copy of a run in a store that this machine works in, and its place among those of the store's other writers.

A run in a store is worked on in an ordinary run directory, in the cache. `.store.json` in it names the copy. The index in the
store names the copy that published it: where both are the same, this machine was the last to work there and its copy holds
all that is published, and what it finished before it was killed; else the run went on elsewhere, and the copy is made anew
from what is published.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from inward.errors import StorageError, UsageError
from inward.records import content_id
from inward.storage import cache_dir, read_json, write_json
from inward.store.index import OWN, Changed, Index, fetch, read_index
from inward.store.remote import Store

RECORD = ".store.json"


def copy_folder(url: str, use: str) -> Path:
    """Return where the copy of a run lies here: to work in ("work") or to read ("read"). It is named as the run is."""
    plain = url.rstrip("/")
    return cache_dir() / "stores" / content_id(plain)[:16] / use / plain.rpartition("/")[2]


def name_copy(store: Store, root: Path) -> str:
    """Return the name of the copy in this folder, which gets one where it has none."""
    path = root / RECORD
    if not path.exists():
        _note(store, root, uuid.uuid4().hex, published=False)
    return str(read_json(path)["copy"])


def bring_up_to_date(store: Store, root: Path, copy: str, say: Callable[[str], None]) -> Index:
    """Make the copy hold all that is published, and return that. Call while holding both locks.

    Raises UsageError where the store holds something else than a run, or no longer the run that this copy is of.
    """
    for _ in range(3):
        index = read_index(store)
        if index is None:
            _require_new(store, root)
            return Index(copy, {})
        if index.copy == copy:
            return index
        if index.files:
            say(f"The run was last worked on elsewhere: fetching what is finished from {store.url} into {root}")
        try:
            fetch(store, index.files, root)
        except Changed as error:
            damaged = str(error)
            continue
        return index
    raise StorageError(
        f"{store.url}/{damaged} is not what was published there: it was removed or replaced by something else than inward. "
        "Restore it (from a version that the store keeps, say), or start a new run with another --out"
    )


def note_published(store: Store, root: Path, copy: str) -> None:
    """Note that the store holds an index of this copy."""
    _note(store, root, copy, published=True)


def _note(store: Store, root: Path, copy: str, *, published: bool) -> None:
    write_json(root / RECORD, {"copy": copy, "url": store.url, "published": published})


def _require_new(store: Store, root: Path) -> None:
    if (root / RECORD).exists() and read_json(root / RECORD)["published"]:
        raise UsageError(
            f"{store.url} holds no run any more, but {root} holds a copy of the one that was there. To start a new run, remove "
            "that folder; to keep the old one, move it elsewhere, and go on with --out there"
        )
    others = [name for name in store.list() if not name.startswith(f"{OWN}/")]
    if others:
        raise UsageError(f"{store.url} is not empty ({others[0]}) and is no run: choose another place with --out")
