"""From a task to the stored records of a stage: what is missing is done, and stored by this process alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from inward.execution.task import Executor, Task
from inward.runs.ledger import Cost, append_cost
from inward.runs.progress import Reporter
from inward.runs.shards import read_shard, remove_others, shard_path, write_shard

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


def complete(
    task: Task[S, T, R],
    folder: Path,
    record_type: type[R],
    *,
    executor: Executor,
    ledger: Path,
    reporter: Reporter,
    unit: str,
    units_per_item: int = 1,
) -> list[R]:
    """Do the shards of a task that `folder` does not hold, and return the records of all, in the order of the shards.

    Progress is told in `unit`s, of which an item is `units_per_item`. A row of the ledger is written just before its shard.
    """
    missing = tuple(shard for shard in task.shards if not shard_path(folder, shard.name).exists())
    if missing:
        reporter.begin(task.place, units_per_item * sum(len(shard.items) for shard in missing), unit)
        listener = _Listener(ledger, reporter, threading.Lock())
        for result in executor.run(replace(task, shards=missing), listener):
            listener.book(result.cost)
            write_shard(shard_path(folder, result.shard), record_type, result.records)
        reporter.end()
        remove_others(folder, [shard.name for shard in task.shards])
    return [record for shard in task.shards for record in read_shard(shard_path(folder, shard.name), record_type)]


@dataclass(frozen=True, slots=True)
class _Listener:
    """Passes on what is heard from any thread, one thing at a time."""

    ledger: Path
    reporter: Reporter
    lock: threading.Lock

    def advance(self, items: int, tokens: int) -> None:
        with self.lock:
            self.reporter.advance(items, tokens)

    def book(self, cost: Cost) -> None:
        with self.lock:
            append_cost(self.ledger, cost)
