"""Where things run: the one place that decides it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from inward.config import ExecutionSettings
from inward.errors import MissingExtraError
from inward.execution.here import Here
from inward.execution.pool import Pool
from inward.execution.processes import Processes, share_out
from inward.execution.task import Executor, Listener, Needs, Resource, Result, Task
from inward.hardware import accelerators, device_ids

if TYPE_CHECKING:
    from inward.execution.ray import Share

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


def count_accelerators(settings: ExecutionSettings) -> int:
    """Return how many accelerators there are to work on: this machine's, or the cluster's."""
    return accelerators() if settings.ray is None else _share(settings, None).accelerators


def count_workers(settings: ExecutionSettings, devices: int = 1) -> int:
    """Return how many workers share the shards of a stage whose model takes so many accelerators (`share_out`, `share_of`)."""
    if settings.workers and devices == 1:
        return settings.workers  # a set number needs no look at the hardware
    if settings.ray is not None:
        return _share(settings, settings.workers, devices).workers
    return len(share_out(device_ids(), settings.workers, devices))


def isolated(settings: ExecutionSettings) -> bool:
    """Say whether models are held by processes of their own, which give all memory back when they end.

    On accelerators they are, unless the recipe decides otherwise; on processors a process costs more than it frees.
    """
    return accelerators() > 0 if settings.isolate is None else settings.isolate


@contextmanager
def executing(settings: ExecutionSettings, folder: Path | None = None) -> Iterator[Executor]:
    """Give the executor of a recipe for the length of the block.

    On a cluster all nodes must see `folder`. Raises UsageError where the cluster cannot be used.
    """
    if settings.ray is not None:
        share = partial(_share, settings, settings.workers)
        share(1)  # a cluster that cannot be used says so now
        from inward.execution.ray import RayActors, marked

        with marked(folder) as site:
            yield from _closing(ByNeed(Here(), Pool(RayActors(share, site))))
        return
    spread = count_workers(settings) > 1 or isolated(settings)
    yield from _closing(ByNeed(Here(), Pool(Processes(settings.workers, device_ids()))) if spread else Here())


def _closing(executor: Executor) -> Iterator[Executor]:
    try:
        yield executor
    finally:
        executor.close()


def in_team(
    settings: ExecutionSettings,
    folder: Path,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    size: int,
    advance: Callable[..., None],
    restart: Callable[[], None],
    timeout_s: float,
    label: str,
) -> None:
    """Have the nodes of the recipe's cluster, which see `folder`, do something together (`in_ray_train`)."""
    share = _share(settings, size)
    from inward.execution.ray import marked
    from inward.execution.ray_team import in_ray_train

    with marked(folder) as site:
        in_ray_train(
            function,
            arguments,
            size=size,
            share=share,
            site=site,
            advance=advance,
            restart=restart,
            timeout_s=timeout_s,
            label=label,
        )


def _share(settings: ExecutionSettings, workers: int | None, devices: int = 1) -> Share:
    """Join the recipe's cluster and return what each of so many workers takes of it. Raises MissingExtraError without Ray."""
    if find_spec("ray") is None:
        raise MissingExtraError("ray", "ray")
    from inward.execution.ray import join, share_of

    assert settings.ray is not None, "there is a cluster"
    join(settings.ray)
    return share_of(workers, settings.threads, devices)
