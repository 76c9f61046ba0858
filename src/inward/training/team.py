"""Several processes that train one model: whose pairs are whose, and how they stay one.

Each process holds the whole model, its masters and its optimiser, or its part of them (`sharding`). The pairs of an optimiser
step are dealt out by length, each process adds up the gradients of its own, and the sums are added over the processes in fp32.
So every process takes the same step, and the model, the files and the order of the pairs are those of one process up to the
rounding of a sum whose terms come in another order. Only the main process writes; whatever depends on files is decided there
and told to the others.

Processes are joined by accelerate's PartialState, which knows the backend and the device for the hardware that is there. What
is sent goes through torch.distributed itself: accelerate's `reduce` copies what it sums, and its `gather` cuts or pads tensors
to one length, while ours is in place, and lists of pairs.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn

from inward.errors import TrainingError
from inward.training.examples import Example

T = TypeVar("T")

BUCKET_NUMBERS = 2**24
"""Gradients that are summed over the processes at once: 64 MiB of them, so that small ones do not each wait for the others."""
LONGEST_WAIT = timedelta(hours=12)
"""For the main process to write a checkpoint, say. A process that dies is not found by waiting: see `peers`."""
GRACE_S = 60.0
"""How long a process that has lost another gives whoever started it to say so."""


@dataclass(frozen=True, slots=True)
class Team:
    """The processes that share a training, and which of them this one is: `rank` of `size`, the main one being 0."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def key(self) -> tuple[int, ...]:
        """What to add to a seed whose numbers must differ between the processes; nothing in the main one.

        So with one process nothing depends on there being teams, and a number of processes always gives the same numbers.
        LoRA's dropout, its only use, draws other masks where pairs are dealt out otherwise, as it does for other batches.
        """
        return () if self.main else (self.rank,)

    def share(self, pairs: Sequence[Example]) -> list[Example]:
        """Return the pairs that are this process's: the longest first, each to whoever has the fewest unique tokens so far."""
        return deal(pairs, self.size)[self.rank]

    def gather(self, mine: T) -> list[T]:
        """Return what every process gives, in the order of their ranks."""
        if self.size == 1:
            return [mine]
        values: list[T | None] = [None] * self.size
        with peers():
            distributed.all_gather_object(values, mine)
        return values  # type: ignore[return-value]

    def agree(self, decide: Callable[[], T]) -> T:
        """Return what the main process decides. The others do not call `decide`."""
        if self.size == 1:
            return decide()
        decisions: list[T | None] = [decide() if self.main else None]
        with peers():
            distributed.broadcast_object_list(decisions, src=0)
        return decisions[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Return once every process has come here."""
        self.gather(None)

    def sum_gradients(self, masters: Sequence[nn.Parameter]) -> None:
        """Add every process's gradients up, in place and alike in all of them.

        Where only some processes have a gradient (the others had no pairs) they all get it; where none has, there is none.
        """
        if self.size == 1:
            return
        exists_P = torch.tensor([master.grad is not None for master in masters], dtype=torch.int32, device=masters[0].device)
        with peers():
            distributed.all_reduce(exists_P, op=distributed.ReduceOp.MAX)
        gradients = [_gradient(master) for master, exists in zip(masters, exists_P.tolist(), strict=True) if exists]
        for bucket in _buckets(gradients):
            flat = bucket[0].view(-1) if len(bucket) == 1 else torch.cat([gradient.view(-1) for gradient in bucket])
            with peers():
                distributed.all_reduce(flat)
            if len(bucket) > 1:
                for gradient, part in zip(bucket, torch.split(flat, [gradient.numel() for gradient in bucket]), strict=True):
                    gradient.copy_(part.view_as(gradient))


ALONE = Team()


@dataclass(frozen=True, slots=True)
class TeamAddress:
    """Where and as which process one joins a team: at a port of this machine, as `rank` of `size`. It can be pickled.

    Without a port somebody else (Ray Train) has joined the processes, maybe of several machines, to a group, and ends it.
    """

    rank: int
    size: int
    port: int | None = None


def deal(pairs: Sequence[Example], processes: int) -> list[list[Example]]:
    """Return the pairs of each process, so that all have about as many unique tokens; the same whatever the pairs' order.

    The longest pair that is left goes to the process with the fewest tokens, the first of equals.
    """
    shares: list[list[Example]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for pair in sorted(pairs, key=lambda pair: (-pair.unique_tokens, pair.pair_id)):
        process = tokens.index(min(tokens))
        shares[process].append(pair)
        tokens[process] += pair.unique_tokens
    return shares


@contextmanager
def open_team(size: int) -> Iterator[list[TeamAddress]]:
    """Yield an address for each process of a team. They meet at a store that this process keeps open inside the block."""
    # Port 0 is any free one, and it is held from here on.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    yield [TeamAddress(rank, size, store.port) for rank in range(size)]


@contextmanager
def join_team(address: TeamAddress) -> Iterator[Team]:
    """Join a team, wait until all of its processes have, and leave it at the end of the block.

    From here on the current device is the GPU of this process, where there are any.
    """
    from accelerate import PartialState

    on_processor = not torch.cuda.is_available()
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate sets another number, and says so
    if address.port is None:
        PartialState(cpu=on_processor, **({"backend": "gloo"} if on_processor else {}))
        yield Team(address.rank, address.size)
        return
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(address.port),
        "RANK": str(address.rank),
        "LOCAL_RANK": str(address.rank),
        "WORLD_SIZE": str(address.size),
        "LOCAL_WORLD_SIZE": str(address.size),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is the other side's, not one to be opened by rank 0
    }
    if on_processor:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())  # all are on this machine, and nobody else is to join
    with peers():
        PartialState(cpu=on_processor, timeout=LONGEST_WAIT, **({"backend": "gloo"} if on_processor else {}))
    yield Team(address.rank, address.size)
    distributed.destroy_process_group()


@contextmanager
def peers() -> Iterator[None]:
    """Turn the loss of another process, which the backends tell by a bare RuntimeError, into silence, then an error.

    Whoever started the processes hears of a death as well, knows which one died and why, and ends the others. It must be
    the one to speak; this process only does so if nobody ends it. Errors of anything but the exchange pass as they are.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):  # gloo names its source files
            raise
        time.sleep(GRACE_S)
        raise TrainingError(
            f"the processes of this training lost each other: {error}. What was finished is kept: run the same command again"
        ) from error


def _gradient(master: nn.Parameter) -> torch.Tensor:
    master.grad = torch.zeros_like(master) if master.grad is None else master.grad.contiguous()
    return master.grad


def _buckets(gradients: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Group gradients, in their order, to `BUCKET_NUMBERS` numbers; a larger one comes alone."""
    buckets: list[list[torch.Tensor]] = []
    numbers = BUCKET_NUMBERS
    for gradient in gradients:
        if numbers + gradient.numel() > BUCKET_NUMBERS:
            buckets.append([])
            numbers = 0
        buckets[-1].append(gradient)
        numbers += gradient.numel()
    return buckets


def _loopback() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
