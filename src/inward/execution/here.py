"""The executor that does everything in this process: one shard after the other, or several at once that wait for a server."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

from inward.execution.task import Listener, Needs, Resource, Result, Shard, Task
from inward.execution.worker import Holder, Meter, do_shard
from inward.hardware import give_back_memory

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


class Here:
    """An `Executor` in this process."""

    def __init__(self) -> None:
        self._models, self._others = Holder(), Holder()  # a judge without a model must not put an engine out

    def run(self, task: Task[S, T, R], listener: Listener) -> Iterator[Result[R]]:
        value = (self._models if task.needs.model else self._others).get(task.resource)
        meter = Meter(task.spent, value)
        if task.needs.at_once > 1 and len(task.shards) > 1:
            yield from _run_at_once(task, value, meter, listener)
        else:
            for shard in task.shards:
                yield do_shard(task, value, meter, shard, listener)
        if task.needs.model:
            give_back_memory()

    def prepare(self, resource: Resource[Any], needs: Needs) -> None:
        """Do nothing: this process has other work until the task comes."""

    def release(self) -> None:
        self._models.release()

    def close(self) -> None:
        self._models.release()
        self._others.release()


def _run_at_once(task: Task[S, T, R], value: S, meter: Meter, listener: Listener) -> Iterator[Result[R]]:
    """Do several shards at the same time in threads. The first error ends the rest, once what they wait for has answered.

    The threads are daemons: Ctrl-C does not wait for a server.
    """
    waiting: queue.SimpleQueue[Shard[T]] = queue.SimpleQueue()
    for shard in task.shards:
        waiting.put(shard)
    results: queue.SimpleQueue[Result[R] | BaseException] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                shard = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                results.put(do_shard(task, value, meter, shard, listener))
            except BaseException as error:  # noqa: BLE001 (it is raised again in the thread that asked)
                results.put(error)
                return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(task.needs.at_once, len(task.shards)))]
    for thread in threads:
        thread.start()
    try:
        for _ in task.shards:
            result = results.get()
            if isinstance(result, BaseException):
                stopped.set()
                yield from _finished(threads, results)
                raise result
            yield result
    finally:
        stopped.set()


def _finished(threads: list[threading.Thread], results: queue.SimpleQueue[Any]) -> Iterator[Result[Any]]:
    """Wait for shards that were in work when another failed, and yield those that came to an end: they are paid for."""
    for thread in threads:
        thread.join()
    while not results.empty():
        result = results.get()
        if not isinstance(result, BaseException):
            yield result
