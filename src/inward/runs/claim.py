"""The lock of a run in a store: one object that says who writes there, made only where there is none, and renewed.

A file lock is freed by the system when its process dies; an object is not. So its holder gives a sign of life every
`BEAT_S`, and whoever finds one that is old, and sees none come for `WATCH_S`, takes the lock over. A holder that lost it so,
for it was cut off, finds another's name in it, and publishes nothing more.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from dataclasses import dataclass
from threading import Event
from typing import Any

from inward.errors import RunLockedError
from inward.store.index import OWN
from inward.store.remote import Store, Unreachable

LOCK = f"{OWN}/lock.json"
BEAT_S = 15.0
"""How often the holder says that it lives."""
DEAD_S = 120.0
"""Age of the last sign of life from which a holder is thought to be dead."""
WATCH_S = 40.0
"""How long no sign may come then: clocks of machines differ, so an age alone proves nothing."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What this process wrote into the lock; `copy` is the folder it works in."""

    store: Store
    copy: str
    session: str
    since: float

    def require(self) -> None:
        """Raise RunLockedError where the lock is not ours any more."""
        holder = _read(self.store)
        if holder is None or holder["session"] != self.session:
            whose = "removed" if holder is None else f"taken over by {_name(holder)}"
            raise RunLockedError(
                f"the lock of {self.store.url} was {whose}: this process publishes nothing more there. Stop the other one, "
                "then run the same command again; it goes on from what is published"
            )

    def beat(self, stop: Event) -> None:
        """Give signs of life until `stop` is set. Raises RunLockedError where the lock was lost."""
        while not stop.wait(BEAT_S):
            try:
                self.require()
                self._write()
            except Unreachable:
                continue  # the next sign may get through; what is published says meanwhile that something is wrong

    def release(self) -> None:
        holder = _read(self.store)
        if holder is not None and holder["session"] == self.session:
            self.store.delete([LOCK])

    def _content(self) -> bytes:
        me = {"host": platform.node(), "process": os.getpid(), "copy": self.copy, "session": self.session}
        return json.dumps({**me, "since": self.since, "alive": time.time()}).encode()

    def _write(self) -> None:
        self.store.write(LOCK, self._content())


def take(store: Store, copy: str) -> Claim:
    """Take the lock for a copy, which this process is the only one to work in. Raises RunLockedError, StorageError."""
    claim = Claim(store, copy, uuid.uuid4().hex, time.time())
    while True:
        holder = _read(store)
        if holder is None:
            if store.create(LOCK, claim._content()):
                break
            continue  # another one was faster
        if holder["copy"] != copy and _alive(store, holder):
            age = max(0, round(time.time() - holder["alive"]))
            raise RunLockedError(
                f"{_name(holder)} is working on {store.url} (last sign of life {age} s ago): wait for it, or stop it. If it "
                f"is dead, run the same command again in {DEAD_S:.0f} s, or remove {store.url}/{LOCK}"
            )
        claim._write()  # the holder is dead: it worked in the copy that is ours now, or gives no sign
        break
    claim.require()  # of two who took it over at once, the last has it
    return claim


def _alive(store: Store, holder: dict[str, Any]) -> bool:
    """Return whether the holder of a lock gives signs of life."""
    if time.time() - holder["alive"] < DEAD_S:
        return True
    time.sleep(WATCH_S)
    return _read(store) != holder


def _read(store: Store) -> dict[str, Any] | None:
    data = store.read(LOCK)
    return None if data is None else json.loads(data)


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['process']} on {holder['host']}"
