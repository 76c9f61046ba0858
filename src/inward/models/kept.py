"""Model folders that are made once and kept in the cache: whole or not at all, by one of all processes that ask at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from inward.errors import StorageError
from inward.storage import TEMPORARY, cache_dir, remove_leftovers, storage_errors, whole_folder

Report = Callable[[str], None]


def models_dir(cache: Path | None = None) -> Path:
    """Return the folder of all kept models; `cache` is the cache of `inward` unless given."""
    return (cache or cache_dir()) / "models"


def kept_folder(target: Path, make: Callable[[Path], None], *, title: str, needed: int) -> Path:
    """Return `target`, which `make` fills, under a temporary name, if it does not exist yet.

    `needed` is the space in bytes that it takes. Raises StorageError, naming `title` and the remedy, where there is too
    little, or where the cache cannot be written.
    """
    if target.is_dir():
        return target
    import filelock

    try:
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(target.with_name(f"{target.name}.lock")):
                if not target.is_dir():
                    remove_leftovers(target.parent, target.name)
                    _require_space(target.parent, needed)
                    with whole_folder(target) as folder:
                        make(folder)
                    remove_leftovers(target.parent, target.name)  # a killed process's child may have written on for a while
    except StorageError as error:  # its remedies are those for a run; a cache has another one
        reason = error.__cause__
        raise StorageError(
            f"cannot keep {title} in {target.parent}: {reason}. Set INWARD_CACHE to a folder with about "
            f"{needed / 1e9:.1f} GB free."
        ) from reason
    return target


def work_folder_prefix(target: Path) -> str:
    """Return how the names of temporary folders beside `target` begin, so that a killed process's are found and removed."""
    return f"{TEMPORARY}{target.name}-"


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")
