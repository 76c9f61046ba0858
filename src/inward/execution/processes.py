"""The workers of this machine: processes, each with devices or a share of the processor of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from inward.execution.children import Child, Gone, Nursery, how_it_died, receive
from inward.execution.pool import Death
from inward.execution.serve import serve
from inward.execution.task import Needs

PYTHON_ERROR = 1
"""The exit code of a process that an exception has ended."""


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


@dataclass(frozen=True, slots=True, eq=False)
class _Process:
    child: Child
    ready: bool = True  # it finds in its pipe what it was told while it started

    def send(self, message: Any) -> None:
        self.child.connection.send(message)

    def end(self) -> None:
        self.child.end()


class Processes:
    """A `Crew` of `workers` processes, or of one for every group of `devices` that a task needs (`share_out`)."""

    def __init__(self, workers: int | None, devices: Sequence[str] = ()) -> None:
        assert workers is None or workers > 0, "a pool needs a worker"
        self._share = partial(share_out, tuple(devices), workers)
        self._devices = self._share(1)  # what each worker sees
        self._nursery = Nursery()

    @property
    def size(self) -> int:
        return len(self._devices)

    def regroup(self, needs: Needs) -> bool:
        before, self._devices = self._devices, self._share(needs.devices)
        return before != self._devices  # a process cannot change the devices that it sees

    def must_end(self, sleeps: bool) -> bool:
        return self._devices[0] is not None and not sleeps  # a process keeps memory of its device

    def start(self, number: int) -> _Process:
        return _Process(self._nursery.start(_serve, self._devices[number]))

    def hear(self, workers: Iterable[_Process], timeout: float | None) -> Iterator[tuple[_Process, Any]]:
        by_connection = {worker.child.connection: worker for worker in workers}
        for connection in wait(list(by_connection), timeout):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            try:
                yield worker, receive(connection)
            except Gone:
                why = how_it_died(worker.child.process)
                yield worker, Death(why, mistake=worker.child.process.exitcode == PYTHON_ERROR)

    def close(self) -> None:
        self._nursery.close()


def _serve(connection: Connection, device: str | None) -> None:
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before anything looks for devices
    serve(connection)
