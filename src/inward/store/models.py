"""Model folders in a store: fetched whole, checked, and kept in the cache by what they hold, for every process of a machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from inward.errors import StorageError, UsageError
from inward.models.kept import Report, kept_folder, models_dir
from inward.records import content_id
from inward.store.index import TRANSFERS, Changed, Entry, fetch, read_index
from inward.store.remote import Store, Unreachable, open_store

SUFFIXES = (".json", ".jinja", ".model", ".txt")
"""Endings of the files that hold a model's configuration and its tokenizer; its code (`.py`) is fetched where it is trusted."""
WEIGHTS = ".safetensors"
POLL_S = 2.0
"""How often the index is read again for a model that is not published yet."""


def fetched_model(
    url: str, *, code: bool = False, weights: bool = True, report: Report | None = None, patience_s: float = 0.0
) -> Path:
    """Return a folder here with the model at a URL, which is fetched unless the very same one is kept already.

    `weights` and `code` say whether these are fetched with its configuration and its tokenizer.

    Of a run's model the run's recipe is fetched too, so that it is known by which thought format it was trained; one that is
    not published yet is waited for for `patience_s`.
    Raises UsageError where there is no model, or none that is whole; StorageError.
    """
    store = open_store(url)
    run, name = _run_around(store.url)
    say = report or (lambda _: None)
    if run is not None:
        files = {**_files_in_run(run, name, patience_s), "config.json": None}
        if not weights:
            files = {file: entry for file, entry in files.items() if not file.endswith(WEIGHTS)}
        needed = sum(entry[0] for entry in files.values() if entry)
        identity = content_id(run.url, *(f"{file} {entry}" for file, entry in sorted(files.items())))
        return _keep(store, identity, needed, partial(_fetch_of_run, run, files), say) / name
    suffixes = (*SUFFIXES, *((WEIGHTS,) if weights else ()), *((".py",) if code else ()))
    objects = {path: found for path, found in store.list().items() if path.endswith(suffixes)}
    if not objects:
        raise UsageError(f"{url} holds no model: give the URL of a folder with config.json, weights and a tokenizer")
    identity = content_id(url, *(f"{path} {found}" for path, found in sorted(objects.items())))
    sizes = {path: size for path, (size, _) in objects.items()}
    return _keep(store, identity, sum(sizes.values()), partial(_fetch_listed, store, sizes), say)


def _run_around(url: str) -> tuple[Store | None, str]:
    """Return the run that a URL lies in, if any, and the name that it has there."""
    protocol, _, path = url.partition("://")
    parts = path.split("/")
    for count in range(len(parts), 0, -1):
        above = open_store(f"{protocol}://{'/'.join(parts[:count])}")
        try:
            if read_index(above) is not None:
                return above, "/".join(parts[count:])
        except Unreachable:
            raise
        except StorageError:
            continue  # credentials that cover the model alone say nothing of what is around it
    return None, ""


def _files_in_run(run: Store, name: str, patience_s: float) -> dict[str, Entry]:
    until = time.monotonic() + patience_s
    while True:
        index = read_index(run)
        files = {file: entry for file, entry in index.files.items() if file.startswith(f"{name}/")} if index and name else {}
        if files or not name or time.monotonic() >= until:
            break
        time.sleep(POLL_S)
    if not files:
        what = f"{name} is not finished in the run {run.url}" if name else f"{run.url} is a run, not a model"
        raise UsageError(f"{what}: `inward status {run.url}` shows how far it is; its models are <arm>/iter_NNN/model")
    return files


def _fetch_of_run(run: Store, files: Mapping[str, Entry], folder: Path) -> None:
    try:
        fetch(run, files, folder)
    except Changed as error:
        raise StorageError(f"{run.url}/{error} was replaced while it was fetched: run the same command again") from error


def _fetch_listed(store: Store, sizes: Mapping[str, int], folder: Path) -> None:
    def one(name: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not store.download(name, path) or path.stat().st_size != sizes[name]:
            raise StorageError(f"{store.url}/{name} was replaced while it was fetched: run the same command again")

    with ThreadPoolExecutor(TRANSFERS) as pool:
        for _ in pool.map(one, sizes):
            pass


def _keep(store: Store, identity: str, needed: int, make: partial[None], say: Report) -> Path:
    title = store.url.rpartition("/")[2]
    target = models_dir() / f"store-{title}-{identity[:16]}"
    if not target.is_dir():
        say(f"fetching {store.url} ({needed / 1e9:.1f} GB) into {target}")
    return kept_folder(target, make, title=store.url, needed=needed)
