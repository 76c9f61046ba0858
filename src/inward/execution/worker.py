"""What a worker does, wherever it runs: it holds a resource, does shards, and says what they cost."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from inward.errors import InwardError
from inward.execution.task import Listener, Resource, Result, Shard, Task
from inward.hardware import accelerators, give_back_memory
from inward.runs.ledger import Cost, peak_memory

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

BOOKING_INTERVAL_S = 1.0
"""How often what a shard has spent so far is booked: what a kill of all processes can hide from the ledger."""
IN_WORK = "in work"
"""The part of a stage that spending is booked under while its shard is not finished."""


class Holder:
    """Holds at most one open resource and keeps it for the next task (`Resource` says when).

    What is released is closed, and kept only if it can be renewed: a closed engine takes a model faster than a new one. What
    sleeps is kept, closed, beside the resources of other kinds.
    """

    def __init__(self) -> None:
        self._resource: Resource[Any] | None = None
        self._value: Any = None
        self._closed = False
        self._asleep: dict[str, tuple[Resource[Any], Any]] = {}

    def get(self, resource: Resource[S]) -> S:
        """Return what a resource stands for: the one that is held, that one renewed, or a new one."""
        held = self._resource
        if held is not None and not self._closed and (held.kind, held.key) == (resource.kind, resource.key):
            return self._value  # type: ignore[no-any-return]
        if held is None or held.kind != resource.kind:
            self._change(resource.kind)
        if not self._renew(resource):
            self.release()
            self._resource, self._value = None, None
            self._value = resource.make()
        self._resource, self._closed = resource, False
        return self._value  # type: ignore[no-any-return]

    def _change(self, kind: str) -> None:
        """Close what is held, and take up what sleeps of another kind, if anything does."""
        self.release()
        if self._resource is not None and self._resource.sleeps:
            self._asleep[self._resource.kind] = (self._resource, self._value)
        self._resource, self._value = self._asleep.pop(kind, (None, None))
        self._closed = True

    def _renew(self, resource: Resource[Any]) -> bool:
        """Turn what is held into a resource; say whether that was possible. A renewal that fails leaves nothing to use."""
        if self._resource is None or resource.renew is None:
            return False
        held, value = self._resource, self._value
        self._resource, self._value = None, None
        renewed = resource.renew(value)
        self._resource, self._value = held, value
        return renewed

    def release(self) -> None:
        """Close what is held and give its memory back."""
        if self._resource is None or self._closed:
            return
        self._resource.close(self._value)
        self._closed = True
        if self._resource.renew is None:
            self._resource, self._value = None, None
        give_back_memory()


class Meter:
    """Tells apart what a resource spends from one look to the next. Any thread may look; nothing is told twice."""

    def __init__(self, spent: Callable[[Any], dict[str, Any]], value: Any) -> None:
        self._spent, self._value = spent, value
        self._lock = threading.Lock()
        self._last = spent(value)

    @property
    def counts(self) -> bool:
        """Whether anything can be spent at all."""
        return bool(self._last)

    def take(self) -> dict[str, Any]:
        """Return what was spent since the last look, by the names of a cost row's fields."""
        with self._lock:
            now = self._spent(self._value)
            before, self._last = self._last, now
        return {name: number - before[name] for name, number in now.items()}


def do_shard(task: Task[S, T, R], value: S, meter: Meter, shard: Shard[T], listener: Listener) -> Result[R]:
    """Do one shard. What a shard that fails has spent is booked all the same."""
    began = time.perf_counter()
    try:
        with _booking(task, meter, listener):
            records = task.work(value, shard.items, listener.advance)
    except BaseException:
        if any((spent := meter.take()).values()):
            listener.book(_cost(task, shard.name, shard.items, [], time.perf_counter() - began, spent))
        raise
    cost = _cost(task, shard.name, shard.items, records, time.perf_counter() - began, meter.take())
    return Result(shard=shard.name, records=records, cost=cost)


@contextmanager
def _booking(task: Task[Any, Any, Any], meter: Meter, listener: Listener) -> Iterator[None]:
    """Book what is spent inside the block every second, so that a kill cannot hide it. Raises what booking raised."""
    if not meter.counts:
        yield
        return
    done = threading.Event()
    errors: list[InwardError] = []

    def book() -> None:
        while not errors and not done.wait(BOOKING_INTERVAL_S):
            if any((spent := meter.take()).values()):
                try:
                    listener.book(_cost(task, IN_WORK, (), [], 0.0, spent))
                except InwardError as error:
                    errors.append(error)

    thread = threading.Thread(target=book, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if errors:
        raise errors[0]


def _cost(
    task: Task[Any, Any, Any], part: str, items: Sequence[Any], records: Sequence[Any], seconds: float, spent: dict[str, Any]
) -> Cost:
    return Cost(
        arm=task.place.arm,
        iteration=task.place.iteration,
        stage=task.place.stage,
        part=part,
        seconds=seconds,
        device_seconds=seconds * _devices(task) if task.needs.model else 0.0,
        items=len(items),
        tokens=sum(map(task.tokens, records)),
        judge_calls=sum(map(task.calls, records)),
        peak_memory=peak_memory(),
        **spent,
    )


def _devices(task: Task[Any, Any, Any]) -> int:
    """Return how many accelerators a task uses here, without loading torch to find out: without it there can be none."""
    return min(task.needs.devices, accelerators()) if "torch" in sys.modules else 0
