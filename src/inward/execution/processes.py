"""The executor of this machine: a pool of worker processes, each with devices or a share of the processor of its own.

Shards wait in one queue, and a worker that is free takes the next one. Workers live from task to task and keep their
resource, so that a stage pays neither for the start of a process nor for loading an engine that is loaded already. A shard
whose worker died is given to another one; after `MOST_DEATHS` the error names the shard. A Python exception is no death: it
would come again, so it ends the run at once.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from inward.errors import InwardError
from inward.execution.children import Child, Gone, Nursery, how_it_died, receive
from inward.execution.task import Listener, Needs, Resource, Result, Shard, Task
from inward.execution.worker import Holder, Meter, do_shard
from inward.runs.ledger import Cost

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

MOST_DEATHS = 3
"""So many workers may die of one shard. The system ends a process for lack of memory once in a while; a shard that ends
three is to blame itself."""
PYTHON_ERROR = 1
"""The exit code of a process that an exception has ended."""
RELEASED = "released"
"""What a worker says when it has closed what it held."""


@dataclass(slots=True)
class _Worker:
    child: Child
    task: Task[Any, Any, Any] | None = None  # the one that it was told of last
    shard: Shard[Any] | None = None  # what it has in work
    items: int = 0  # how far it is with that
    tokens: int = 0
    sleeps: bool = False  # it may hold something that sleeps


def share_out(devices: Sequence[str], workers: int | None, each: int) -> list[str | None]:
    """Return what each worker sees of the accelerators, as CUDA_VISIBLE_DEVICES names it; None where there are none.

    There are as many workers as groups of `each`, or `workers` if that is set: more of them share the devices in turn. A model
    that is cut over several fills them all, so there are never more workers than groups for it.
    """
    if not devices:
        return [None] * (workers or 1)
    groups = [",".join(devices[start : start + each]) for start in range(0, len(devices) - each + 1, each)]
    assert groups, f"a worker needs {each} accelerators, and there are {len(devices)}: the stage has to look before"
    count = workers or len(groups)
    return [groups[index % len(groups)] for index in range(count if each == 1 else min(count, len(groups)))]


class Processes:
    """An `Executor` over processes: `workers` of them, or one for every group of `devices` that a task needs (`share_out`).

    Workers end where the next task needs groups of another size.
    """

    def __init__(self, workers: int | None, devices: Sequence[str] = ()) -> None:
        assert workers is None or workers > 0, "a pool needs a worker"
        self._share = partial(share_out, tuple(devices), workers)
        self._devices = self._share(1)  # what each worker sees
        self._nursery = Nursery()
        self._workers: dict[int, _Worker] = {}

    def run(self, task: Task[S, T, R], listener: Listener) -> Iterator[Result[R]]:
        bare = replace(task, shards=())  # each worker is told of the task once, and then of one shard after the other
        waiting, deaths = deque(task.shards), Counter[str]()
        self._regroup(task.needs)
        complete = False
        try:
            while waiting or any(worker.shard for worker in self._workers.values()):
                self._hand_out(waiting, bare)
                for index, message in self._messages():
                    if message is None:
                        self._bury(index, waiting, deaths, task, listener)
                    elif isinstance(message, Result):
                        self._workers[index].shard = None
                        yield message
                    else:
                        self._hear(index, message, listener)
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
        for index in range(len(self._devices)):
            self._worker(index).sleeps |= resource.sleeps
            self._send(index, resource)

    def release(self) -> None:
        """Have the workers close what they hold, and wait until they have.

        On accelerators they end, since a process keeps memory of its device, unless they hold something that sleeps.
        """
        for index, worker in list(self._workers.items()):
            if self._devices[index] is not None and not worker.sleeps:
                self._workers.pop(index).child.end()
            else:
                self._send(index, None)
        waiting = set(self._workers)
        while waiting:
            for index, message in self._messages():
                if isinstance(message, InwardError):
                    raise message
                if message is None:
                    self._workers.pop(index).child.end()  # it is gone, and with it all that it held
                if message in (None, RELEASED):
                    waiting.discard(index)

    def close(self) -> None:
        self._end_workers()
        self._nursery.close()

    def _regroup(self, needs: Needs) -> None:
        """Give each worker as many devices as a task needs. A process cannot change those that it sees, so it ends."""
        devices = self._share(needs.devices)
        if devices != self._devices:
            self._end_workers()
            self._devices = devices

    def _hand_out(self, waiting: deque[Shard[Any]], task: Task[Any, Any, Any]) -> None:
        for index in range(len(self._devices)):
            if not waiting:
                return
            worker = self._worker(index)
            if worker.shard is None:
                worker.shard, worker.items, worker.tokens = waiting.popleft(), 0, 0
                if worker.task is not task:
                    self._send(index, task)
                    worker.task = task
                    worker.sleeps |= task.resource.sleeps
                self._send(index, worker.shard)

    def _messages(self, timeout: float | None = None) -> Iterator[tuple[int, Any]]:
        """Wait until some worker has something to say; yield what they say, None for one that is gone."""
        indices = {worker.child.connection: index for index, worker in self._workers.items()}
        for connection in wait(list(indices), timeout):
            assert isinstance(connection, Connection)
            try:
                message = receive(connection)
            except Gone:
                message = None
            yield indices[connection], message

    def _hear(self, index: int, message: Any, listener: Listener) -> None:
        if isinstance(message, InwardError):
            raise message
        if isinstance(message, Cost):
            listener.book(message)
            return
        worker, (items, tokens) = self._workers[index], message
        worker.items += items
        worker.tokens += tokens
        listener.advance(items, tokens)

    def _finished(self, listener: Listener) -> Iterator[Result[Any]]:
        """Yield the results that are in the pipes, and book what is there: other errors and deaths matter no more."""
        while messages := list(self._messages(timeout=0.0)):
            for index, message in messages:
                if message is None:
                    self._workers.pop(index).child.end()
                elif isinstance(message, Result):
                    yield message
                elif isinstance(message, Cost):
                    listener.book(message)

    def _bury(
        self,
        index: int,
        waiting: deque[Shard[Any]],
        deaths: Counter[str],
        task: Task[Any, Any, Any],
        listener: Listener,
    ) -> None:
        """Give the shard of a dead worker back to the queue, unless too many have died of it."""
        worker = self._workers.pop(index)
        why = how_it_died(worker.child.process)
        worker.child.end()
        if worker.shard is None:
            return  # it died between two shards; another one is started when there is work for it
        listener.advance(-worker.items, -worker.tokens)  # another one begins that shard anew
        shard = worker.shard
        deaths[shard.name] += 1
        if worker.child.process.exitcode == PYTHON_ERROR or deaths[shard.name] >= MOST_DEATHS:
            count = deaths[shard.name]
            died = "its process died" if count == 1 else f"{count} processes died of it, the last one"
            raise InwardError(
                f"{task.place}: shard {shard.name} could not be done: {died} ({why}). Everything finished is kept. If memory "
                "is short, lower sampling.rows or execution.workers; then run the same command again"
            )
        waiting.appendleft(shard)

    def _worker(self, index: int) -> _Worker:
        worker = self._workers.get(index)
        if worker is not None and worker.shard is None and not worker.child.process.is_alive():
            self._workers.pop(index).child.end()  # it died while nothing was to do, which is no shard's fault
        if index not in self._workers:
            self._workers[index] = _Worker(self._nursery.start(_serve, self._devices[index]))
        return self._workers[index]

    def _send(self, index: int, message: Any) -> None:
        with suppress(ConnectionError):  # it is dead: `_messages` finds that out, and `_bury` knows what to do
            self._worker(index).child.connection.send(message)

    def _end_workers(self) -> None:
        for worker in self._workers.values():
            worker.child.end()
        self._workers.clear()


class _Speaker:
    """The listener inside a worker: passes everything on to the run's process."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: Any) -> None:
        with self._lock:
            self._connection.send(message)

    def advance(self, items: int, tokens: int) -> None:
        self.send((items, tokens))

    def book(self, cost: Cost) -> None:
        self.send(cost)


def _serve(connection: Connection, device: str | None) -> None:
    """Do what the run's process says: make a resource ready, take a task, do a shard, or (None) release what is held."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before anything looks for devices
    holder, speaker = Holder(), _Speaker(connection)
    task: Task[Any, Any, Any] | None = None
    while True:
        try:
            message = connection.recv()
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


def _do(holder: Holder, task: Task[Any, Any, Any], shard: Shard[Any], speaker: _Speaker) -> None:
    """Do a shard. Nothing here outlives the call: only the holder may hold on to a resource."""
    value = holder.get(task.resource)
    speaker.send(do_shard(task, value, Meter(task.spent, value), shard, speaker))


def _prepare(holder: Holder, resource: Resource[Any]) -> None:
    with suppress(Exception):  # whatever it is, it comes again, and is heard, with the first shard that needs the resource
        holder.get(resource)
