"""Where things run: the one place that decides it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from inward.config import ExecutionSettings
from inward.execution.here import Here
from inward.execution.processes import Processes, share_out
from inward.execution.task import Executor, Listener, Needs, Resource, Result, Task
from inward.hardware import accelerators, device_ids

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ByNeed:
    """An `Executor` that gives tasks with a model to workers, and does all others in this process."""

    here: Executor
    workers: Executor

    def run(self, task: Task[S, T, R], listener: Listener) -> Iterator[Result[R]]:
        return (self.workers if task.needs.model else self.here).run(task, listener)

    def prepare(self, resource: Resource[Any], needs: Needs) -> None:
        if needs.model:
            self.workers.prepare(resource, needs)

    def release(self) -> None:
        self.workers.release()
        self.here.release()

    def close(self) -> None:
        self.workers.close()
        self.here.close()


def count_workers(settings: ExecutionSettings, devices: int = 1) -> int:
    """Return how many workers share the shards of a stage whose model takes so many accelerators (`share_out`)."""
    if settings.workers and devices == 1:
        return settings.workers  # a set number needs no look at the hardware
    return len(share_out(device_ids(), settings.workers, devices))


def isolated(settings: ExecutionSettings) -> bool:
    """Say whether models are held by processes of their own, which give all memory back when they end.

    On accelerators they are, unless the recipe decides otherwise; on processors a process costs more than it frees.
    """
    return accelerators() > 0 if settings.isolate is None else settings.isolate


@contextmanager
def executing(settings: ExecutionSettings) -> Iterator[Executor]:
    """Give the executor of a recipe for the length of the block."""
    spread = count_workers(settings) > 1 or isolated(settings)
    executor: Executor = ByNeed(Here(), Processes(settings.workers, device_ids())) if spread else Here()
    try:
        yield executor
    finally:
        executor.close()
