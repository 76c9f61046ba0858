"""What a worker does from its start to its end: it hears what the run's process says, and answers, wherever it runs."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any, Protocol

from inward.errors import InwardError
from inward.execution.task import Resource, Shard, Task
from inward.execution.worker import Holder, Meter, do_shard
from inward.runs.ledger import Cost

RELEASED = "released"
"""What a worker says when it has closed what it held."""


class Line(Protocol):
    """A worker's side of what joins it to the run's process."""

    def recv(self) -> Any:
        """Return the next message. Raises EOFError where there will be none."""
        ...

    def send(self, message: Any, /) -> None: ...


def serve(line: Line) -> None:
    """Do what the run's process says: make a resource ready, take a task, do a shard, or (None) release what is held."""
    holder, speaker = Holder(), _Speaker(line)
    task: Task[Any, Any, Any] | None = None
    while True:
        try:
            message = line.recv()
        except EOFError:
            return
        try:
            if message is None:
                holder.release()
                speaker.send(RELEASED)
            elif isinstance(message, Task):
                task = message
            elif isinstance(message, Shard):
                assert task is not None, "a shard comes after its task"
                _do(holder, task, message, speaker)
            else:
                _prepare(holder, message)
        except InwardError as error:
            speaker.send(error)


class _Speaker:
    """The listener inside a worker: passes everything on to the run's process."""

    def __init__(self, line: Line) -> None:
        self._line, self._lock = line, threading.Lock()

    def send(self, message: Any) -> None:
        with self._lock:
            self._line.send(message)

    def advance(self, items: int, tokens: int) -> None:
        self.send((items, tokens))

    def book(self, cost: Cost) -> None:
        self.send(cost)


def _do(holder: Holder, task: Task[Any, Any, Any], shard: Shard[Any], speaker: _Speaker) -> None:
    """Do a shard. Nothing here outlives the call: only the holder may hold on to a resource."""
    value = holder.get(task.resource)
    speaker.send(do_shard(task, value, Meter(task.spent, value), shard, speaker))


def _prepare(holder: Holder, resource: Resource[Any]) -> None:
    with suppress(Exception):  # whatever it is, it comes again, and is heard, with the first shard that needs the resource
        holder.get(resource)
