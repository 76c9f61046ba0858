"""Outcomes of battles, kept under what they depend on: nothing is asked twice, across iterations and runs.

One SQLite file in a folder that any number of processes may share. A key holds the comparer's name (with its settings) and
what the name does not say (a model's content), the prompt and both texts *in their order*: a battle the other way round is
another question. Errors are not kept, so that they are asked again. Every chunk is committed before the next is asked: a kill
loses one chunk at most. Where the comparer stops for good, what it had answered by then is kept.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

from inward.errors import StorageError
from inward.judging.pairwise.comparer import Battle, Comparer, Outcome, Stopped
from inward.judging.spending import Spending

FILE = "outcomes-4.sqlite"
"""The number changes with the layout, with what is shown to a judge, and with how its replies are read."""
CHUNK = 512
"""Battles that are asked between two commits: enough to keep an endpoint or an engine full."""
WAIT = 60.0
"""Seconds that one process waits for another one's commit."""


class Cached:
    """A comparer that asks another one only what the folder does not hold yet. Equal battles of a call are asked once.

    Several threads may compare at once: a battle that one of them is asking is not asked by another, which waits for it. What
    stands in the folder is what every caller gets. `identity` is what outcomes depend on beside the comparer's name.
    Raises `StorageError` where the folder cannot be used.
    """

    def __init__(self, comparer: Comparer, folder: Path, *, identity: str = "", chunk: int = CHUNK) -> None:
        assert chunk > 0
        self._comparer, self._path, self._chunk, self._identity = comparer, folder / FILE, chunk, identity
        self._asking: set[bytes] = set()
        self._changed = threading.Condition()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(folder, error) from error
        with _database(self._path) as database:
            database.execute("CREATE TABLE IF NOT EXISTS outcomes (key BLOB PRIMARY KEY, outcome TEXT NOT NULL)")

    @property
    def name(self) -> str:
        return self._comparer.name

    def costs(self) -> Spending:
        """Return what was spent on what the folder did not hold."""
        return self._comparer.costs()

    def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
        """Return one outcome a battle, in order: the stored one, or the comparer's, which is stored unless it is an error."""
        keys = [self.key(battle) for battle in battles]
        battle_of = dict(zip(keys, battles, strict=True))
        outcomes = self._stored(battle_of)
        while missing := {key: battle for key, battle in battle_of.items() if key not in outcomes}:
            claimed = self._claim(missing)
            try:
                outcomes |= self._stored(claimed)  # another thread may have stored some before they were claimed
                todo = [(key, missing[key]) for key in claimed if key not in outcomes]
                for start in range(0, len(todo), self._chunk):
                    outcomes |= self._ask(todo[start : start + self._chunk])
            finally:
                self._release(claimed)
        return [outcomes[key] for key in keys]

    def _claim(self, keys: Collection[bytes]) -> list[bytes]:
        """Return those of the keys that no other thread is asking, once there are any, and note that this thread does.

        Nobody who waits here is asking anything, so that no two threads can wait for each other.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._asking.issuperset(keys))
            claimed = [key for key in keys if key not in self._asking]
            self._asking.update(claimed)
            return claimed

    def _release(self, keys: Collection[bytes]) -> None:
        with self._changed:
            self._asking.difference_update(keys)
            self._changed.notify_all()

    def key(self, battle: Battle) -> bytes:
        """Return a digest of all that the outcome depends on, and of where one part ends and the next begins."""
        digest = hashlib.sha256()
        for part in (self.name, self._identity, battle.prompt.text, battle.first, battle.second):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.digest()

    def _ask(self, part: Sequence[tuple[bytes, Battle]]) -> dict[bytes, Outcome]:
        try:
            outcomes = self._comparer.compare([battle for _, battle in part])
        except Stopped as stop:
            self._store({part[index][0]: outcome for index, outcome in stop.answered.items()})
            raise
        asked = dict(zip((key for key, _ in part), outcomes, strict=True))
        self._store(asked)
        return asked | self._stored(asked)  # another process may have stored its own outcome first

    def _stored(self, keys: Collection[bytes]) -> dict[bytes, Outcome]:
        if not keys:
            return {}
        with _database(self._path) as database:
            rows = ((key, row) for key in keys if (row := database.execute(_SELECT, (key,)).fetchone()) is not None)
            return {key: self._read(text) for key, (text,) in rows}

    def _read(self, text: str) -> Outcome:
        try:
            return Outcome(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise _unusable(self._path, error) from error

    def _store(self, outcomes: dict[bytes, Outcome]) -> None:
        rows = [(key, json.dumps(asdict(outcome))) for key, outcome in outcomes.items() if outcome.value is not None]
        with _database(self._path) as database, database:
            database.executemany("INSERT OR IGNORE INTO outcomes VALUES (?, ?)", rows)


_SELECT = "SELECT outcome FROM outcomes WHERE key = ?"


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file for one piece of work, so that a forked or a spawned process never inherits a connection."""
    try:
        with closing(sqlite3.connect(path, timeout=WAIT)) as database:
            yield database
    except sqlite3.Error as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"the cache of verdicts {path} cannot be used: {error}. Free some space if the disk is full; if the file is damaged, "
        "delete it (its verdicts are asked again); or set INWARD_CACHE to another folder, or cache = false for this judge; "
        "then run the same command again"
    )
