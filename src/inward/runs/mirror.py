"""Publishing a run while it is worked on: whatever is finished in its copy on this machine comes to the store meanwhile.

`storage` finishes files and folders by a rename, whichever process makes them. So nothing has to tell this module what is
finished: it looks. Two looks that see the same prove that all of it was there at one instant; that state is brought to the
store, and becomes the run's by one PUT of the index. A kill at any moment leaves the state before or the state after.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TypeAlias

from inward.errors import RunLockedError, StorageError
from inward.models.identity import file_digest
from inward.models.origins import note_origin
from inward.runs.claim import Claim, take
from inward.runs.place import Place
from inward.runs.progress import Reporter
from inward.runs.working_copy import bring_up_to_date, name_copy, note_published
from inward.storage import TEMPORARY
from inward.store.index import LOCAL_ONLY, TRANSFERS, Entry, Index, is_replaced, whole_folder_of, write_index
from inward.store.remote import Unreachable, open_store

INTERVAL_S = 5.0
"""How often the copy is looked at."""
PATIENCE_S = 600.0
"""How long a store may be out of reach before the run stops at the next stage. Nothing is lost by it."""
LOOKS = 20
"""Looks at a copy that changes all the time, before the next try is left to the next time."""
Stamp: TypeAlias = tuple[int, int, int]
"""Size, time of the last change in nanoseconds, inode."""


@dataclass(slots=True)
class Mirror:
    """Keeps the store at what is finished under `root`. One thread publishes; `check` and `finish` are for the main one.

    `stray` are objects that no index may come to name, since whoever brought them was killed or found them gone.
    """

    root: Path
    claim: Claim
    reporter: Reporter
    index: Index
    stray: set[str] = field(default_factory=set)
    error: StorageError | None = None
    failing_since: float = 0.0
    stamps: Mapping[str, Stamp] = field(default_factory=dict)
    stop: Event = field(default_factory=Event)
    threads: tuple[Future[None], ...] = ()

    def watch(self) -> None:
        """Publish what is new every few seconds until `stop` is set. Raises what time does not mend."""
        while not self.stop.wait(INTERVAL_S):
            self.attempt()

    def attempt(self) -> bool:
        """Publish what is new, and return whether the store took it. Raises what time does not mend."""
        try:
            published = self.publish()
        except Unreachable as error:
            if self.error is None:
                self.failing_since = time.monotonic()
                self.reporter.say(f"{error}. The run goes on, and what it finishes is kept in {self.root} meanwhile")
            self.error = error
            return False
        self.error = None
        return published

    def check(self) -> None:
        """Raise StorageError where the store refuses what is finished, RunLockedError where another process has the run."""
        for thread in self.threads:
            if thread.done():
                self._result(thread)
        if self.error is not None and time.monotonic() - self.failing_since > PATIENCE_S:
            raise self._kept(self.error)

    def finish(self) -> None:
        """Publish the rest once nothing is written any more. Raises StorageError, RunLockedError."""
        self.stop.set()
        self._result(self.threads[0])  # the other one gives signs of life until all is published
        while True:
            try:
                if self.attempt():
                    return
            except StorageError as error:
                raise self._kept(error) from error
            self.check()
            time.sleep(INTERVAL_S)

    def publish(self) -> bool:
        """Bring the store to the state of the copy at one instant; return False where it changes too fast for that."""
        files = look(self.root)
        if files is None:
            return False
        touched = [name for name in files if name not in self.index.files or self.stamps.get(name) != files[name]]
        try:
            entries = {name: entry_of(self.root, name) for name in touched}
            known = {**self.index.files, **entries}
            changed = [name for name in touched if entries[name] is None or self.index.files.get(name) != entries[name]]
            self.stray.update(changed)
            self._withdraw({name for name in changed if self.index.files.get(name) is not None})
            with ThreadPoolExecutor(TRANSFERS) as pool:
                for _ in pool.map(lambda name: self._upload(name, files[name]), changed):
                    pass
        except FileNotFoundError:
            return False  # it was removed since, or replaced
        self._commit({name: known[name] for name in files})
        self.stamps = files
        return True

    def _upload(self, name: str, stamp: Stamp) -> None:
        path = self.root / name
        if is_replaced(name):
            self.claim.store.write(name, path.read_bytes())  # all at once: it may grow while it travels
            return
        try:
            self.claim.store.upload(name, path)
        except StorageError:
            if not path.exists():
                raise FileNotFoundError(path) from None
            raise
        if stamp_of(path) != stamp:
            raise FileNotFoundError(path)

    def _withdraw(self, names: set[str]) -> None:
        """Take from the index what is about to be overwritten, with the folders that are nothing without it."""
        folders = {whole_folder_of(name) for name in names} - {None}
        kept = {
            name: entry
            for name, entry in self.index.files.items()
            if name not in names and whole_folder_of(name) not in folders
        }
        if len(kept) < len(self.index.files):
            self._write(kept)

    def _commit(self, finished: dict[str, Entry]) -> None:
        gone = (self.index.files.keys() | self.stray) - finished.keys()
        if finished != self.index.files:
            self._write(finished)
        self.claim.store.delete(sorted(gone))
        self.stray.clear()

    def _write(self, files: dict[str, Entry]) -> None:
        self.claim.require()
        index = Index(self.claim.copy, files)
        write_index(self.claim.store, index)
        self.index = index

    def _result(self, thread: Future[None]) -> None:
        try:
            thread.result()
        except StorageError as error:
            raise self._kept(error) from error

    def _kept(self, error: StorageError) -> StorageError:
        return StorageError(f"{error}. Then run the same command again: everything finished is kept in {self.root}")


@dataclass(frozen=True, slots=True)
class Watched:
    """A reporter that stops the run at the next stage where the store refuses what was finished."""

    reporter: Reporter
    mirror: Mirror

    def begin(self, place: Place, total: int, unit: str) -> None:
        self.mirror.check()
        self.reporter.begin(place, total, unit)

    def advance(self, items: int, tokens: int) -> None:
        self.reporter.advance(items, tokens)

    def end(self, note: str = "") -> None:
        self.reporter.end(note)

    def say(self, line: str) -> None:
        self.reporter.say(line)


@contextmanager
def mirrored(root: Path, url: str, reporter: Reporter) -> Iterator[Reporter]:
    """Hold a run's lock in a store, have `root` hold the run, and publish it meanwhile. Yields what to report to.

    The caller holds the lock of `root`. Raises RunLockedError, UsageError, StorageError.
    """
    store = open_store(url)
    claim, released = take(store, name_copy(store, root)), Event()
    try:
        index = Index(claim.copy, bring_up_to_date(store, root, claim.copy, reporter.say).files)
        claim.require()
        write_index(store, index)  # it shows at once whether the store takes what is written
        note_published(store, root, claim.copy)
        stray = {name for name in store.list() if not is_replaced(name)}
        mirror = Mirror(root, claim, reporter, index, stray)
        note_origin(root, url)
        with ThreadPoolExecutor(2) as pool:
            mirror.threads = (pool.submit(mirror.watch), pool.submit(claim.beat, released))
            try:
                yield Watched(reporter, mirror)
                mirror.finish()
            except BaseException as error:
                _publish_last(mirror, error)
                raise
            finally:
                released.set()
    finally:
        _release(claim)


def _publish_last(mirror: Mirror, error: BaseException) -> None:
    """Publish what was finished before an error, which is what has to be heard of: a second one is only told."""
    mirror.stop.set()
    if isinstance(error, StorageError | RunLockedError):
        return
    try:
        mirror.threads[0].result()
        mirror.publish()
    except (StorageError, RunLockedError) as second:
        mirror.reporter.say(str(second))


def _release(claim: Claim) -> None:
    try:
        claim.release()
    except StorageError:
        return  # it says by its age that its holder is gone


def look(root: Path) -> dict[str, Stamp] | None:
    """Return the finished files under `root` at one instant, by name; None where they change too fast to tell.

    What is replaced in one piece may change while it is looked at: it is whole at any time.
    """
    before = _walk(root)
    for _ in range(LOOKS):
        after = _walk(root)
        if before is not None and after is not None and _same(before, after):
            return after
        before = after
    return None


def stamp_of(path: Path) -> Stamp:
    status = os.stat(path)
    return (status.st_size, status.st_mtime_ns, status.st_ino)


def entry_of(root: Path, name: str) -> Entry:
    """Return what the index says of a file."""
    path = root / name
    return None if is_replaced(name) else (path.stat().st_size, file_digest(path))


def _walk(root: Path) -> dict[str, Stamp] | None:
    """Return the finished files in the order of their names, or None where one went away under way."""
    stamps: dict[str, Stamp] = {}
    try:
        for folder, folders, files in os.walk(root, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith(TEMPORARY))
            for file in sorted(files):
                path = Path(folder, file)
                name = path.relative_to(root).as_posix()
                if not file.startswith(TEMPORARY) and name not in LOCAL_ONLY:
                    stamps[name] = stamp_of(path)
    except FileNotFoundError:
        return None
    return stamps


def _raise(error: OSError) -> None:
    raise error


def _same(before: dict[str, Stamp], after: dict[str, Stamp]) -> bool:
    return before.keys() == after.keys() and all(before[name] == after[name] for name in before if not is_replaced(name))
