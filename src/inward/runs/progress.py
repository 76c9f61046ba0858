"""How far a run is: told to whoever shows it, and kept in `progress.json` for any status line, page or program to read.

    {"command": "run", "state": "running", "arm": "thinking", "iteration": 1, "stage": "outputs", "unit": "outputs",
     "done": 128, "total": 320, "tokens": 11264, "rate": 9.8, "seconds_left": 19.6, "began": 1790000000.0,
     "updated": 1790000013.1, "process": 4242}

Times are seconds since 1970. `command` is "run" or "evaluate", `state` is "running", "finished" or "stopped". What was killed
still says "running", but its process is gone and `updated` grows no more. Only the run's own process writes the file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from inward.errors import StorageError
from inward.runs.place import Place
from inward.storage import write_json

INTERVAL_S = 1.0
"""How often the file is written while a stage runs."""


class Reporter(Protocol):
    """Whoever shows the user how far a run is."""

    def begin(self, place: Place, total: int, unit: str) -> None:
        """A stage begins, of which `total` units are still to do."""
        ...

    def advance(self, items: int, tokens: int) -> None:
        """So many more units are done, and so many tokens."""
        ...

    def end(self, note: str = "") -> None:
        """The stage is done."""
        ...

    def say(self, line: str) -> None:
        """Show a line of text."""
        ...


class Silent:
    """A reporter that shows nothing: for stages that are too short to show, and for tests."""

    def begin(self, place: Place, total: int, unit: str) -> None: ...

    def advance(self, items: int, tokens: int) -> None: ...

    def end(self, note: str = "") -> None: ...

    def say(self, line: str) -> None: ...


@dataclass(slots=True)
class ProgressFile:
    """A reporter that keeps `progress.json` and passes everything on to another one."""

    path: Path
    reporter: Reporter
    command: str = "run"
    _stage: dict[str, Any] = field(default_factory=dict)
    _written: float = 0.0

    def begin(self, place: Place, total: int, unit: str) -> None:
        self._stage = {"arm": place.arm, "iteration": place.iteration, "stage": place.stage, "unit": unit}
        self._stage |= {"done": 0, "total": total, "tokens": 0, "began": time.time()}
        self._write()
        self.reporter.begin(place, total, unit)

    def advance(self, items: int, tokens: int) -> None:
        self._stage["done"] += items
        self._stage["tokens"] += tokens
        if time.time() - self._written >= INTERVAL_S:
            self._write()
        self.reporter.advance(items, tokens)

    def end(self, note: str = "") -> None:
        self._write()
        self.reporter.end(note)

    def say(self, line: str) -> None:
        self.reporter.say(line)

    def _write(self) -> None:
        now = time.time()
        self._written = now
        seconds, done = now - self._stage["began"], self._stage["done"]
        rate = done / seconds if done and seconds > 0 else None
        left = None if rate is None else round((self._stage["total"] - done) / rate, 1)
        rates = {"rate": rate and round(rate, 4), "seconds_left": left}
        write_json(
            self.path,
            {"command": self.command, "state": "running", **self._stage, **rates, "updated": now, "process": os.getpid()},
            durable=False,
        )


@contextmanager
def tracked(path: Path, reporter: Reporter, command: str = "run") -> Iterator[Reporter]:
    """Keep `progress.json` of a command beside what the reporter shows, and note in the end how the block ended."""
    try:
        yield ProgressFile(path, reporter, command)
    except BaseException:
        with suppress(StorageError):  # the disk may be what the error is about
            write_json(path, {"command": command, "state": "stopped", "updated": time.time()})
        raise
    write_json(path, {"command": command, "state": "finished", "updated": time.time()})
