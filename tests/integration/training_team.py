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
from inward.training.team import TeamAddress, open_team

Inputs = tuple[Path, list[Example], list[ReferenceLogps]]


def in_team(size: int, work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call `work(address, *arguments)` in `size` processes; return their exit codes. Once one is killed, so are the others."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.llama.modeling_llama", "peft", "accelerate", "inward.training.train"])
    deadline = time.monotonic() + 120
    with open_team(size) as addresses:
        processes = [context.Process(target=work, args=(address, *arguments)) for address in addresses]
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            if time.monotonic() > deadline or any(process.exitcode == -signal.SIGKILL for process in processes):
                for process in processes:
                    process.kill()
            time.sleep(0.01)
    return [process.exitcode for process in processes]


def train_in_team(
    address: TeamAddress,
    inputs: Inputs,
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
    from inward.training.team import join_team

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
    if dies_after and address.rank == 0:
        sys.addaudithook(watch)
    if fails == "memory" and address.rank == address.size - 1:
        training.sequence_logps = short_of_memory
    with join_team(address) as team:
        try:
            training.train(*inputs, settings, out, seed=5, dtype=dtype, team=team, shard=shard)
        except InwardError as error:
            report.with_name(f"{report.name}-{address.rank}").write_text(f"{type(error).__name__}: {error}")
    if fails == "memory":
        report.with_name(f"{report.name}-{address.rank}").write_text("took all memory" if not left else "had enough")


def train_and_lose_one(
    address: TeamAddress,
    inputs: Inputs,
    settings: TrainingSettings,
    out: Path,
    shard: bool,
    advance: Callable[..., None],
) -> None:
    """Train; the last process is killed in the middle of the fourth step, when the others wait for its gradients.

    With `shard` it is killed before the step's first forward pass, when they wait for its part of the weights.
    """
    import torch

    from inward.training import train as training
    from inward.training.team import Team, join_team

    usual, logps = Team.sum_gradients, training.sequence_logps
    calls = 0

    def die() -> None:
        nonlocal calls
        calls += 1
        if calls == 4 and address.rank == address.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def lost(team: Team, masters: Any) -> None:
        die()
        usual(team, masters)

    def lost_before(*arguments: Any) -> Any:
        die()
        return logps(*arguments)

    torch.set_num_threads(1)
    if shard:
        training.sequence_logps = lost_before
    else:
        Team.sum_gradients = lost  # type: ignore[method-assign]
    with join_team(address) as team:
        training.train(*inputs, settings, out, seed=5, dtype="float32", team=team, shard=shard)


def train_short_of_memory(
    address: TeamAddress,
    inputs: Inputs,
    settings: TrainingSettings,
    out: Path,
    tokens: int,
    advance: Callable[..., None],
) -> None:
    """Train with cut weights, in a last process whose memory holds `tokens` at a time."""
    import torch

    from inward.training import train as training
    from inward.training.team import join_team

    logps = training.sequence_logps

    def poor(model: Any, batch: Any) -> Any:
        if address.rank == address.size - 1 and batch.tokens.numel() > tokens:
            raise torch.OutOfMemoryError("out of memory")
        return logps(model, batch)

    torch.set_num_threads(1)
    training.sequence_logps = poor
    with join_team(address) as team:
        training.train(*inputs, settings, out, seed=5, dtype="float32", team=team, shard=True)


def hold_a_part(
    address: TeamAddress, model: Path, examples: Sequence[Example], settings: TrainingSettings, report: Path
) -> None:
    """Take a step over the same pairs in all processes; write, by rank, how many numbers and bytes this one holds, and of what.

    `whole` has the gradients, put together; `layers` says how many layers are put together one by one.
    """
    import json

    import torch
    from torch.distributed.fsdp import FSDPModule

    from inward.training.batches import collate
    from inward.training.logps import sequence_logps
    from inward.training.sharding import gather_tensors
    from inward.training.team import join_team
    from inward.training.trainee import make_trainee

    torch.set_num_threads(1)
    with join_team(address) as team:
        trainee = make_trainee(model, settings, seed=5, dtype="bfloat16", team=team, sharded=True)
        trainee.root(sequence_logps, collate(examples, torch.device("cpu"), trainee.batching)).sum().backward()
        gradients = {name: p.grad for name, p in zip(trainee.weights.names, trainee.weights.master, strict=True)}
        found = {
            "parameters": [p.to_local() for p in trainee.model.parameters()],
            "masters": [p.to_local() for p in trainee.weights.master],
            "gradients": [p.grad.to_local() for p in trainee.weights.master],
        }
        trainee.optimiser.step()
        found["moments"] = [v.to_local() for s in trainee.optimiser.state.values() for v in s.values() if v.dim()]
        held = {name: [sum(t.numel() for t in tensors), sum(t.nbytes for t in tensors)] for name, tensors in found.items()}
        layers = sum(isinstance(module, FSDPModule) for module in trainee.model.modules())
        whole = {name: gradient.tolist() for name, gradient in gather_tensors(gradients, team).items()}
    report.with_name(f"{report.name}-{address.rank}").write_text(json.dumps({"held": held, "whole": whole, "layers": layers}))
