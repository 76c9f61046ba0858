"""The executor over workers: shards wait in one queue, and a worker that is free takes the next one.

Who the workers are is a `Crew`'s matter: processes of this machine (`processes`) or actors of a cluster (`ray`). They live from
task to task and keep their resource, so that a stage pays neither for the start of a worker nor for loading an engine that is
loaded already. A shard whose worker died is given to another one; after `MOST_DEATHS` the error names the shard. A Python
exception is no death: it would come again, so it ends the run at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from inward.errors import InwardError
from inward.execution.serve import RELEASED
from inward.execution.task import Listener, Needs, Resource, Result, Shard, Task
from inward.runs.ledger import Cost

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

MOST_DEATHS = 3
"""So many workers may die of one shard. The system ends a process for lack of memory once in a while; a shard that ends
three is to blame itself."""


@dataclass(frozen=True, slots=True)
class Death:
    """Why a worker is gone. `mistake`: a Python exception has ended it, which would come again."""

    why: str
    mistake: bool = False


class Worker(Protocol):
    """Somebody who does shards (`serve`), as the run's process sees it."""

    @property
    def ready(self) -> bool:
        """Whether it can be given a shard: one that has no place to run yet must not hold one."""
        ...

    def send(self, message: Any) -> None:
        """Say something to it. Raises ConnectionError where it is known to be gone."""
        ...

    def end(self) -> None:
        """End it, whatever it does."""
        ...


W = TypeVar("W", bound=Worker)


class Crew(Protocol[W]):
    """The workers of a pool, by their numbers from 0 to `size` - 1."""

    @property
    def size(self) -> int: ...

    def regroup(self, needs: Needs) -> bool:
        """Have the workers that start from now on take what a task needs; say whether those before them cannot do it."""
        ...

    def must_end(self, sleeps: bool) -> bool:
        """Say whether a worker has to end to give back what its resource took, which sleeps once it is closed or does not."""
        ...

    def start(self, number: int) -> W: ...

    def hear(self, workers: Iterable[W], timeout: float | None) -> Iterator[tuple[W, Any]]:
        """Wait until some worker has something to say, or has died; yield who and what, a `Death` last. It may be nothing."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Place(Generic[W]):
    worker: W
    task: Task[Any, Any, Any] | None = None  # the one that it was told of last
    shard: Shard[Any] | None = None  # what it has in work
    items: int = 0  # how far it is with that
    tokens: int = 0
    sleeps: bool = False  # it may hold something that sleeps


class Pool(Generic[W]):
    """An `Executor` over a crew."""

    def __init__(self, crew: Crew[W]) -> None:
        self._crew = crew
        self._places: dict[int, _Place[W]] = {}

    def run(self, task: Task[S, T, R], listener: Listener) -> Iterator[Result[R]]:
        bare = replace(task, shards=())  # each worker is told of the task once, and then of one shard after the other
        waiting, deaths = deque(task.shards), Counter[str]()
        self._regroup(task.needs)
        complete = False
        try:
            self._miss(listener)
            while waiting or any(place.shard for place in self._places.values()):
                self._hand_out(waiting, bare)
                for number, message in self._messages():
                    if isinstance(message, Death):
                        self._bury(number, message, waiting, deaths, task, listener)
                    elif isinstance(message, Result):
                        self._places[number].shard = None
                        yield message
                    else:
                        self._hear(number, message, listener)
            complete = True
        except InwardError:  # what others have finished by now is kept: it is paid for
            yield from self._finished(listener)
            raise
        finally:
            if not complete:  # an error, Ctrl-C, or whoever asked has had enough: what is in work is of no use any more
                self._end_workers()

    def prepare(self, resource: Resource[Any], needs: Needs) -> None:
        """Start the workers and have each make the resource while this process does something else."""
        self._regroup(needs)
        for number in range(self._crew.size):
            self._place(number).sleeps |= resource.sleeps
            self._send(number, resource)

    def release(self) -> None:
        """Have the workers close what they hold, and wait until they have; those that cannot give it back otherwise end."""
        for number, place in list(self._places.items()):
            if self._crew.must_end(place.sleeps):
                self._places.pop(number).worker.end()
            else:
                self._send(number, None)
        waiting = set(self._places)
        while waiting:
            for number, message in self._messages():
                if isinstance(message, InwardError):
                    raise message
                if isinstance(message, Death):
                    self._places.pop(number).worker.end()  # it is gone, and with it all that it held
                if isinstance(message, Death) or message == RELEASED:
                    waiting.discard(number)

    def close(self) -> None:
        self._end_workers()
        self._crew.close()

    def _regroup(self, needs: Needs) -> None:
        """Give each worker what a task needs: those that have something else end."""
        if self._crew.regroup(needs):
            self._end_workers()

    def _hand_out(self, waiting: deque[Shard[Any]], task: Task[Any, Any, Any]) -> None:
        for number in range(self._crew.size):
            if not waiting:
                return
            place = self._place(number)
            if place.shard is None and place.worker.ready:
                place.shard, place.items, place.tokens = waiting.popleft(), 0, 0
                if place.task is not task:
                    self._send(number, task)
                    place.task = task
                    place.sleeps |= task.resource.sleeps
                self._send(number, place.shard)

    def _messages(self, timeout: float | None = None) -> Iterator[tuple[int, Any]]:
        numbers = {id(place.worker): number for number, place in self._places.items()}
        for worker, message in self._crew.hear([place.worker for place in self._places.values()], timeout):
            yield numbers[id(worker)], message

    def _miss(self, listener: Listener) -> None:
        """Find out who died while nothing was to do, which is no shard's fault; others are started when there is work."""
        while messages := list(self._messages(timeout=0.0)):
            for number, message in messages:
                if isinstance(message, Death):
                    self._places.pop(number).worker.end()
                else:
                    self._hear(number, message, listener)

    def _hear(self, number: int, message: Any, listener: Listener) -> None:
        if isinstance(message, InwardError):
            raise message
        if isinstance(message, Cost):
            listener.book(message)
            return
        place, (items, tokens) = self._places[number], message
        place.items += items
        place.tokens += tokens
        listener.advance(items, tokens)

    def _finished(self, listener: Listener) -> Iterator[Result[Any]]:
        """Yield the results that were sent by now, and book what was: other errors and deaths matter no more."""
        while messages := list(self._messages(timeout=0.0)):
            for number, message in messages:
                if isinstance(message, Death):
                    self._places.pop(number).worker.end()
                elif isinstance(message, Result):
                    yield message
                elif isinstance(message, Cost):
                    listener.book(message)

    def _bury(
        self,
        number: int,
        death: Death,
        waiting: deque[Shard[Any]],
        deaths: Counter[str],
        task: Task[Any, Any, Any],
        listener: Listener,
    ) -> None:
        """Give the shard of a dead worker back to the queue, unless too many have died of it."""
        place = self._places.pop(number)
        place.worker.end()
        if place.shard is None:
            return  # it died between two shards; another one is started when there is work for it
        listener.advance(-place.items, -place.tokens)  # another one begins that shard anew
        shard = place.shard
        deaths[shard.name] += 1
        if death.mistake or deaths[shard.name] >= MOST_DEATHS:
            count = deaths[shard.name]
            died = "its process died" if count == 1 else f"{count} processes died of it, the last one"
            raise InwardError(
                f"{task.place}: shard {shard.name} could not be done: {died} ({death.why}). Everything finished is kept. If "
                "memory is short, lower sampling.rows or execution.workers; then run the same command again"
            )
        waiting.appendleft(shard)

    def _place(self, number: int) -> _Place[W]:
        if number not in self._places:
            self._places[number] = _Place(self._crew.start(number))
        return self._places[number]

    def _send(self, number: int, message: Any) -> None:
        with suppress(ConnectionError):  # it is dead: `_messages` finds that out, and `_bury` knows what to do
            self._place(number).worker.send(message)

    def _end_workers(self) -> None:
        for place in self._places.values():
            place.worker.end()
        self._places.clear()
