"""Files and folders that exist whole or not at all: made under a temporary name, flushed to the disk, renamed.

A temporary name is the final one behind `.tmp-`, in the same folder. No pattern that looks for what is finished
(`part-*`, `epoch_*`, `step_*`) finds it, and whatever a killed process left is known by its name alone.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inward.errors import StorageError

TEMPORARY = ".tmp-"
_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EFBIG: "the system allows no larger file: raise the limit (ulimit -f)",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EACCES: "permission denied: make the folder writable or choose another one with --out",
    errno.EPERM: "permission denied: make the folder writable or choose another one with --out",
    errno.EROFS: "the file system is read-only: choose another folder with --out",
}
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What systems say of a hard link to another file system, or on one that has none."""
_NUMBER = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")
"""How shutil (a list of the copies that failed) and safetensors (Rust) tell the system's error number."""


def cache_dir() -> Path:
    """Return where fetched models are kept: `$INWARD_CACHE`, or the platform's cache folder for `inward`."""
    chosen = os.environ.get("INWARD_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "inward" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "inward"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inward"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about a write into a StorageError with a remedy."""
    try:
        yield
    except _failures() as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        remedy = _REMEDIES.get(_number(error), f"{reason}: choose another folder with --out")
        raise StorageError(
            f"cannot write {path}: {remedy}, then run the same command again; nothing finished is lost"
        ) from error


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write or replace a file in one step, with the folders it is in. Raises StorageError.

    What is not `durable` may be lost in a power cut, but is never torn: it is for what is written again every second.
    """
    temporary = _temporary(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            _sync(path.parent)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode(), durable=durable)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` once the block ends. `path` must not exist. Raises StorageError."""
    temporary = _temporary(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        temporary.mkdir()
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            _sync(temporary)
            temporary.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone after the rename; else it holds nothing of worth


def move(folder: Path, target: Path) -> None:
    """Give a folder another place in the same file system, in one step. `target` must not exist. Raises StorageError."""
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        _sync(target.parent)
        _sync(folder.parent)


def stand_in(folder: Path, target: Path) -> None:
    """Make `target` a folder with the same files, whole or not at all; files are never changed, so no byte is copied.

    They are hard links, or copies where `target` is on another file system. Raises StorageError.
    """
    with whole_folder(target) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target)


def remove(folder: Path) -> None:
    """Remove a folder, if it exists, so that no half of it can be taken for the whole: it loses its name first."""
    with storage_errors(folder):
        if not folder.exists():
            return
        if not folder.name.startswith(TEMPORARY):
            folder = folder.rename(folder.parent / f"{TEMPORARY}removed-{folder.name}")
        shutil.rmtree(folder)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what killed processes left in `folder` and below it, of things whose name begins with `name`.

    Only for whoever is the only one at work there.
    """
    with storage_errors(folder):
        for leftover in list(folder.rglob(f"{TEMPORARY}{name}*")):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)  # it may have been in a folder that is gone by now


def _temporary(path: Path) -> Path:
    return path.with_name(TEMPORARY + path.name)


def _sync(path: Path) -> None:
    """Make a file's content, or the renames in a folder, survive a power cut (where a folder can be flushed: POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failures() -> tuple[type[Exception], ...]:
    """Return what a failed write raises. safetensors has an error of its own, which only those who loaded it can meet."""
    safetensors = sys.modules.get("safetensors")
    return (OSError, safetensors.SafetensorError) if safetensors else (OSError,)


def _number(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = _NUMBER.search(str(error))
    return int(match[1] or match[2]) if match else 0
