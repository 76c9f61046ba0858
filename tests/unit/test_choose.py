"""Where things run is decided in one place: workers, their devices, and what needs neither."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from inward.config import ExecutionSettings
from inward.execution.choose import ByNeed, count_workers, executing, isolated
from inward.execution.here import Here
from inward.execution.processes import Processes
from inward.execution.task import NOTHING, Needs, Task
from inward.hardware import accelerators, device_ids
from inward.runs.place import Place


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_on_processors_everything_runs_here_unless_workers_are_asked_for() -> None:
    assert accelerators() == 0
    with executing(ExecutionSettings()) as executor:
        assert isinstance(executor, Here)
    for settings in (ExecutionSettings(workers=2), ExecutionSettings(isolate=True)):
        with executing(settings) as executor:
            assert isinstance(executor, ByNeed)


def test_a_worker_for_each_gpu(two_gpus: None) -> None:
    assert count_workers(ExecutionSettings()) == 2
    assert count_workers(ExecutionSettings(workers=3)) == 3
    assert isolated(ExecutionSettings())
    assert not isolated(ExecutionSettings(isolate=False))
    with executing(ExecutionSettings(isolate=False, workers=1)) as executor:
        assert isinstance(executor, Here)


def test_each_worker_has_a_device_of_its_own(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_ids() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8f2b")
    assert device_ids() == ["3", "GPU-8f2b"], "those that this process was given, by the names it was given"
    pool = Processes(3, device_ids())
    assert pool._devices == ["3", "GPU-8f2b", "3"]
    pool.close()


class Deaf:
    def advance(self, items: int, tokens: int) -> None: ...

    def book(self, cost: Any) -> None: ...


class Named:
    """An executor that only says who was asked."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked = name, asked

    def run(self, task: Any, listener: Any) -> Iterator[Any]:
        self.asked.append(self.name)
        return iter(())

    def prepare(self, resource: Any) -> None:
        self.asked.append(f"{self.name} prepares")

    def release(self) -> None: ...

    def close(self) -> None: ...


def test_only_what_needs_a_model_goes_to_workers() -> None:
    asked: list[str] = []
    executor = ByNeed(Named("here", asked), Named("workers", asked))
    place = Place(arm="direct", iteration=1, stage="scores")
    for model in (True, False):
        task = Task(place=place, shards=(), work=lambda *_: [], resource=NOTHING, needs=Needs(model=model))
        list(executor.run(task, Deaf()))
    executor.prepare(NOTHING)
    assert asked == ["workers", "here", "workers prepares"]
