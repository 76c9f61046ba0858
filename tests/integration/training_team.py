"""Trains with a team of processes, forked from a server that has imported everything once; any of them can be told to die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inward.config import TrainingSettings
from inward.training.examples import Example, ReferenceLogps
from inward.training.team import Seat, seats

Inputs = tuple[Path, list[Example], list[ReferenceLogps]]


def in_team(size: int, work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call `work(seat, *arguments)` in `size` processes; return their exit codes. Once one is killed, so are the others."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.llama.modeling_llama", "peft", "accelerate", "inward.training.train"])
    deadline = time.monotonic() + 120
    with seats(size) as taken:
        processes = [context.Process(target=work, args=(seat, *arguments)) for seat in taken]
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            if time.monotonic() > deadline or any(process.exitcode == -signal.SIGKILL for process in processes):
                for process in processes:
                    process.kill()
            time.sleep(0.01)
    return [process.exitcode for process in processes]


def train_in_team(
    seat: Seat,
    model: Path,
    examples: Sequence[Example],
    reference: Sequence[ReferenceLogps],
    settings: TrainingSettings,
    out: Path,
    dies_after: str | None,
    fails: str | None,
    report: Path,
    dtype: str,
    shard: bool,
) -> None:
    """Train; the main process dies once it has renamed something to a name that begins with `dies_after` below `out`.

    With `fails` = "memory" the last process runs out of it once. What error a process ends with is written to `report`.
    """
    import torch

    from inward.errors import InwardError
    from inward.training import train as training
    from inward.training.team import seated

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and Path(arguments[1]).name == dies_after and str(arguments[1]).startswith(str(out)):
            os.kill(os.getpid(), signal.SIGKILL)

    usual, left = training.sequence_logps, [1]

    def short_of_memory(*arguments: Any) -> Any:
        if left and len(arguments[1].pair_ids) > 1:
            left.clear()
            raise torch.OutOfMemoryError("out of memory")
        return usual(*arguments)

    torch.set_num_threads(1)
    if dies_after and seat.rank == 0:
        sys.addaudithook(watch)
    if fails == "memory" and seat.rank == seat.size - 1:
        training.sequence_logps = short_of_memory
    with seated(seat) as team:
        try:
            training.train(model, examples, reference, settings, out, seed=5, dtype=dtype, team=team, shard=shard)
        except InwardError as error:
            report.with_name(f"{report.name}-{seat.rank}").write_text(f"{type(error).__name__}: {error}")
    if fails == "memory":
        report.with_name(f"{report.name}-{seat.rank}").write_text("took all memory" if not left else "had enough")


def train_and_lose_one(
    seat: Seat,
    model: Path,
    examples: Sequence[Example],
    reference: Sequence[ReferenceLogps],
    settings: TrainingSettings,
    out: Path,
    advance: Callable[..., None],
) -> None:
    """Train; the last process is killed in the middle of the fourth step, when the others wait for its gradients."""
    import torch

    from inward.training.team import Team, seated
    from inward.training.train import train

    usual = Team.sum_gradients
    steps = 0

    def lost(team: Team, masters: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 4 and team.rank == team.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        usual(team, masters)

    torch.set_num_threads(1)
    Team.sum_gradients = lost  # type: ignore[method-assign]
    with seated(seat) as team:
        train(model, examples, reference, settings, out, seed=5, dtype="float32", team=team)
