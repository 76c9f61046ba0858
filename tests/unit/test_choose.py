"""Where things run is decided in one place: workers, their devices, and what needs neither."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from inward.config import ExecutionSettings, Recipe
from inward.config.recipe import parse_recipe
from inward.errors import UsageError
from inward.execution.choose import ByNeed, count_workers, executing, isolated
from inward.execution.here import Here
from inward.execution.processes import share_out
from inward.execution.task import NOTHING, Needs, Shard, Task
from inward.execution.worker import Meter, do_shard
from inward.hardware import accelerators, device_ids
from inward.runs.place import Place
from inward.stages.engine import sampler_needs
from tests.unit.test_recipes import changed

PLACE = Place(arm="direct", iteration=1, stage="scores")


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
    assert share_out(device_ids(), 3, 1) == ["3", "GPU-8f2b", "3"]


@pytest.mark.parametrize(
    ("gpus", "workers", "each", "expected"),
    [
        (0, None, 1, [None]),
        (0, 3, 2, [None, None, None]),
        (4, None, 1, ["0", "1", "2", "3"]),
        (4, None, 2, ["0,1", "2,3"]),
        (5, None, 2, ["0,1", "2,3"]),
        (4, None, 4, ["0,1,2,3"]),
        (4, 1, 2, ["0,1"]),
        (4, 4, 2, ["0,1", "2,3"]),  # a model that is cut over several GPUs fills them
        (2, 4, 1, ["0", "1", "0", "1"]),
    ],
)
def test_devices_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, gpus: int, workers: int | None, each: int, expected: list[str | None]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert share_out(device_ids(), workers, each) == expected
    assert count_workers(ExecutionSettings(workers=workers), each) == len(expected)


def recipe_of(tensor_parallel: int) -> Recipe:
    recipe = parse_recipe(changed(sampling__vllm={"tensor_parallel": tensor_parallel}))
    return recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"engine": "vllm"})})


def test_a_sampler_that_is_cut_over_gpus_needs_as_many(two_gpus: None) -> None:
    assert sampler_needs(recipe_of(1)) == Needs(model=True)
    assert sampler_needs(recipe_of(2)) == Needs(model=True, devices=2)
    with pytest.raises(UsageError, match=r"sampling\.vllm\.tensor_parallel = 4 .* there are 2: set it to 2 or fewer"):
        sampler_needs(recipe_of(4))


def test_a_task_is_booked_for_the_devices_that_it_uses(two_gpus: None) -> None:
    def device_seconds(devices: int) -> float:
        shard = Shard(name="part", items=(1,))
        task = Task(
            place=PLACE, shards=(shard,), work=lambda *_: [], resource=NOTHING, needs=Needs(model=True, devices=devices)
        )
        cost = do_shard(task, None, Meter(task.spent, None), shard, Deaf()).cost
        return cost.device_seconds / cost.seconds

    assert device_seconds(1) == pytest.approx(1)
    assert device_seconds(2) == pytest.approx(2)


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

    def prepare(self, resource: Any, needs: Any) -> None:
        self.asked.append(f"{self.name} prepares")

    def release(self) -> None: ...

    def close(self) -> None: ...


def test_only_what_needs_a_model_goes_to_workers() -> None:
    asked: list[str] = []
    executor = ByNeed(Named("here", asked), Named("workers", asked))
    for model in (True, False):
        task = Task(place=PLACE, shards=(), work=lambda *_: [], resource=NOTHING, needs=Needs(model=model))
        list(executor.run(task, Deaf()))
        executor.prepare(NOTHING, task.needs)
    assert asked == ["workers", "workers prepares", "here"]
