"""Objects under a URL such as `s3://bucket/folder`: each is written whole or not at all, which is what a PUT promises.

fsspec reaches the store. Credentials, endpoints and regions come from where its packages look for them: the environment and
their own files. A `file://` URL is no store but a path: a shared file system can rename, which is all that `storage` needs.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from inward.errors import MissingExtraError, StorageError, UsageError

EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}
"""The package and the extra of `inward` by which the stores of a protocol are reached."""
_OF_THIS_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")


class Unreachable(StorageError):
    """A store did not answer, or said that it cannot just now: the same may work a little later."""


def is_url(place: str) -> bool:
    """Return whether a place is in a store. Paths, and `file://` URLs, which are paths, are not."""
    match = _URL.match(place)
    return match is not None and match[1].lower() != "file"


def path_of(place: str) -> Path:
    """Return the path that a place on this machine is, given as it is or as a `file://` URL."""
    if place.lower().startswith("file://"):
        parts = urlsplit(place)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(
                f"{place} names the machine {parts.netloc!r}; a path of this one has three slashes: file:///folder"
            )
        return Path(url2pathname(parts.path))
    return Path(place).expanduser()


@dataclass(frozen=True, slots=True)
class Store:
    """The objects under one URL, by their names below it. Every method raises StorageError, with what to do."""

    url: str
    base: str
    files: Any

    def read(self, name: str) -> bytes | None:
        """Return an object's content, or None where there is no such object."""
        with store_errors("read", f"{self.url}/{name}"):
            try:
                data: bytes = self.files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return data

    def write(self, name: str, data: bytes) -> None:
        with store_errors("write", f"{self.url}/{name}"):
            self.files.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that does not exist yet; return False where it does, whoever was first."""
        with store_errors("write", f"{self.url}/{name}"):
            try:
                self.files.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            return True

    def upload(self, name: str, file: Path) -> None:
        with store_errors("write", f"{self.url}/{name}"):
            self.files.put_file(str(file), self._path(name))

    def download(self, name: str, file: Path) -> bool:
        """Write an object's content to a file; return False where there is no such object."""
        with store_errors("read", f"{self.url}/{name}"):
            try:
                self.files.get_file(self._path(name), str(file))
            except FileNotFoundError:
                return False
            return True

    def delete(self, names: Sequence[str]) -> None:
        with store_errors("delete objects of", self.url):
            for name in names:
                try:
                    self.files.rm_file(self._path(name))
                except FileNotFoundError:
                    continue

    def list(self) -> dict[str, tuple[int, str]]:
        """Return of every object its size in bytes and a word that changes with its content, where the store has one."""
        with store_errors("list", self.url):
            try:
                details = self.files.find(self.base, detail=True)
            except FileNotFoundError:
                return {}
        start = len(self.base) + 1
        return {path[start:]: (int(info["size"]), _version(info)) for path, info in details.items() if len(path) > start}

    def _path(self, name: str) -> str:
        return f"{self.base}/{name}"


def open_store(url: str) -> Store:
    """Return the store at a URL, without asking it for anything yet. Raises UsageError, or MissingExtraError."""
    import fsspec

    protocol = url.partition("://")[0].lower()
    try:
        # No kept listings: another machine may have written since.
        files, base = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        if protocol in EXTRAS:
            raise MissingExtraError(*EXTRAS[protocol]) from error
        raise UsageError(f"{url} cannot be reached: {error}") from error
    except ValueError as error:
        raise UsageError(f"{url} is no URL of a store that is known here ({error}): give s3://, gs:// or a path") from error
    return Store(url.rstrip("/"), base.rstrip("/"), files)


@contextmanager
def store_errors(doing: str, url: str) -> Iterator[None]:
    """Turn what a store or the way to it says into a StorageError with a remedy; Unreachable for what may pass."""
    try:
        yield
    except PermissionError as error:
        raise StorageError(
            f"cannot {doing} {url}: the store refuses it ({_reason(error)}). Give this machine credentials, by the environment "
            "or the store's own settings, that may list, read, write and delete there"
        ) from error
    except FileNotFoundError as error:
        raise StorageError(
            f"cannot {doing} {url}: there is no such bucket ({_reason(error)}). Make it, or mend the URL"
        ) from error
    except _failures() as error:
        if isinstance(error, OSError) and error.errno in _OF_THIS_DISK:
            raise  # whoever wrote the file here says what to do
        if type(error).__name__ == "NoCredentialsError":
            raise StorageError(
                f"cannot {doing} {url}: no credentials were found. Set them in the environment (for S3: AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
            ) from error
        raise Unreachable(
            f"cannot {doing} {url}: {_reason(error)}. See that the store is up, has room, and can be reached from here"
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    """Return what a failed request raises. The packages have errors of their own, which only those who loaded them can meet."""
    named = {
        "botocore.exceptions": ("BotoCoreError", "ClientError"),
        "aiohttp": ("ClientError",),
        "gcsfs.retry": ("HttpError",),
        "google.auth.exceptions": ("GoogleAuthError",),
    }
    loaded = [(sys.modules[module], names) for module, names in named.items() if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, names in loaded for name in names))


def _reason(error: Exception) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _version(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"):
        if info.get(key) is not None:
            return str(info[key]).strip('"')
    return ""
