"""Files and folders that exist whole or not at all: written to a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from inward.errors import StorageError

TEMPORARY = ".tmp-"


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into a StorageError that says what is kept and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own kind of error
        raise StorageError(
            f"cannot write {path}: {error}. Every finished epoch and the last saved state are kept; "
            "free some space or mend the permissions, then run the same command again to go on from there"
        ) from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` once the block ends. `path` must not exist."""
    temporary = path.parent / f"{TEMPORARY}{path.name}"
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        temporary.mkdir()
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                sync(file)
            sync(temporary)
            temporary.rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone after the rename; else it holds nothing of worth


def write_whole(path: Path, data: bytes) -> None:
    """Write or replace a file as one step."""
    temporary = path.parent / f"{TEMPORARY}{path.name}"
    with storing(path):
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


def remove(folder: Path) -> None:
    """Remove a folder so that no half of it can be taken for the whole: it loses its name first."""
    if not folder.exists():
        return
    if not folder.name.startswith(TEMPORARY):
        folder = folder.rename(folder.parent / f"{TEMPORARY}removed-{folder.name}")
    shutil.rmtree(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left under a temporary name."""
    with storing(folder):
        for leftover in folder.glob(f"{TEMPORARY}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
