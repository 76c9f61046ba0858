"""Which model a folder holds: one digest of its content, since a path or a name can come to hold another model.

The digest is the SHA-256 of all files that belong to the model: hidden files and Markdown pages do not. It is computed at the
speed of SHA-256 (0.7 to 0.9 GB/s a core on an ordinary machine), once for each file and process. Of a folder with a gigabyte
or more the file digests are also kept in the cache of `inward`, so that a large model is not read again at every start.

A kept digest holds for as long as the file has the same size, inode, and times of the last change of its content and of its
state. The last of these cannot be set back, so that a file that was written over is read again, whatever its dates.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inward.errors import StorageError
from inward.records import content_id
from inward.storage import cache_dir, read_json, write_json

KEPT_BYTES = 1 << 30
"""Size in bytes from which the digests of a folder's files, or of one file, are kept between processes."""
SETTLED_SECONDS = 2.0
"""Age of a file's last change from which its times can be trusted to tell it from a later version."""
THREADS = 4
"""Files that are read side by side: SHA-256 is slower than most disks."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one version of a file from another without reading it. Times are in nanoseconds."""

    size: int
    inode: int
    modified: int
    changed: int

    @property
    def settled(self) -> bool:
        return time.time_ns() - max(self.modified, self.changed) > SETTLED_SECONDS * 1e9


_digests: dict[tuple[Path, Stamp], str] = {}


def content_digest(folder: Path) -> str:
    """Return the SHA-256, in hexadecimal digits, of all files of a model folder with their names."""
    folder = folder.resolve()
    names = sorted(_model_files(folder))
    digests = _file_digests(folder, names)
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name}\0{digests[name]}\0".encode())
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of one file, in hexadecimal digits."""
    path = path.resolve()
    return _file_digests(path.parent, [path.name])[path.name]


def _model_files(folder: Path) -> Iterator[str]:
    """Yield the files that belong to a model, by their paths inside its folder."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and path.suffix != ".md" and path.is_file():
            yield name.as_posix()


def _file_digests(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the digest of each file: from this process, from the cache, or by reading it."""
    stamps = {name: _stamp(folder / name) for name in names}
    large = sum(stamp.size for stamp in stamps.values()) >= KEPT_BYTES
    kept = cache_dir() / "digests" / f"{content_id(str(folder), *names)}.json"
    if large:
        _take_kept(kept, folder, stamps)
    unread = [name for name, stamp in stamps.items() if (folder / name, stamp) not in _digests]
    with ThreadPoolExecutor(THREADS) as pool:
        fresh = dict(zip(unread, pool.map(lambda name: _read_digest(folder / name), unread), strict=True))
    for name, digest in fresh.items():
        if stamps[name].settled:
            _digests[folder / name, stamps[name]] = digest
    digests = {name: fresh.get(name) or _digests[folder / name, stamp] for name, stamp in stamps.items()}
    if large and unread and all(stamp.settled for stamp in stamps.values()):
        _keep(kept, stamps, digests)
    return digests


def _stamp(path: Path) -> Stamp:
    status = os.stat(path)
    return Stamp(size=status.st_size, inode=status.st_ino, modified=status.st_mtime_ns, changed=status.st_ctime_ns)


def _read_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _take_kept(kept: Path, folder: Path, stamps: Mapping[str, Stamp]) -> None:
    """Take over the kept digests of those files that are the same as when they were read."""
    if not kept.is_file():
        return
    for name, (*numbers, digest) in read_json(kept).items():
        if stamps.get(name) == Stamp(*numbers):
            _digests[folder / name, stamps[name]] = digest


def _keep(kept: Path, stamps: Mapping[str, Stamp], digests: Mapping[str, str]) -> None:
    rows = {name: [stamp.size, stamp.inode, stamp.modified, stamp.changed, digests[name]] for name, stamp in stamps.items()}
    with suppress(StorageError):  # keeping them only saves time, and a cache that cannot be written is no reason to stop
        write_json(kept, rows)
