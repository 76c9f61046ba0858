"""The seam between a stage and whatever does its work: a task goes in, the records of its shards come out as they finish.

A stage hands over a `Task` and knows nothing of processes or devices. An `Executor` knows nothing of folders: it takes shards
and yields records. `complete` is where the two meet the run directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from inward.runs.ledger import Cost
from inward.runs.place import Place

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
Advance = Callable[[int, int], None]
"""Called with (items, tokens) done since the last call."""


def let_go(_: Any) -> None:
    """Close nothing: the memory of a plain Python object is freed once nobody holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource(Generic[S]):
    """What all shards of a task share, such as a loaded engine, and how it is made.

    Whoever does the work keeps one resource at a time, and keeps it from task to task: the next task with an equal `kind` and
    `key` uses it as it is. One of the same kind with another key is turned into what is asked for by `renew`, if there is such
    a function and it returns True: an engine takes new weights. Anything else is closed first. All functions have to pickle.

    `sleeps`: what is closed leaves next to nothing on an accelerator, and `renew` is much faster than `make` in a new process.
    It is kept, closed, while others take turns (`Holder`), and its worker lives on where others end.
    """

    kind: str
    key: tuple[str, ...]
    make: Callable[[], S]
    renew: Callable[[S], bool] | None = None
    close: Callable[[S], None] = let_go
    sleeps: bool = False


def make_nothing() -> None:
    """Make the resource of a task whose shards share nothing."""


NOTHING: Resource[None] = Resource(kind="nothing", key=(), make=make_nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What doing a task takes.

    `model`: its resource is a model that is run here, so that it pays to spread the shards over workers, each with its share of
    the processor or a device of its own. `devices`: how many accelerators a worker holds it on, where there are any.
    `at_once`: how many shards one process has in work at the same time, in threads; that is for work that waits for somebody
    else's machine.
    """

    model: bool = False
    devices: int = 1
    at_once: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard(Generic[T]):
    """Items that are done together. Its name says what they are: the same items always have the same name."""

    name: str
    items: tuple[T, ...]


def count_none(_: Any) -> int:
    """Count nothing: for stages whose records cost no tokens or no judgements."""
    return 0


def count_one(_: Any) -> int:
    """Count every record once."""
    return 1


def spend_nothing(_: Any) -> dict[str, Any]:
    """Say that nothing is spent: for stages that ask no judge."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Generic[S, T, R]):
    """The shards of a stage that are still to do, and how they are done. Everything in it has to pickle.

    `work` turns the items of a shard into records. `tokens` and `calls` say what a record counts in the ledger; `spent` says
    what a resource has spent so far, by the names of the ledger's fields, and can be called from any thread.
    """

    place: Place
    shards: tuple[Shard[T], ...]
    work: Callable[[S, Sequence[T], Advance], list[R]]
    resource: Resource[S]
    needs: Needs = Needs()
    tokens: Callable[[R], int] = count_none
    calls: Callable[[R], int] = count_none
    spent: Callable[[S], dict[str, Any]] = spend_nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Generic[R]):
    """A shard that is done."""

    shard: str
    records: list[R]
    cost: Cost


class Listener(Protocol):
    """Whoever wants to hear of work while it goes on. Both may be called from any thread."""

    def advance(self, items: int, tokens: int) -> None:
        """So many more items are done, and so many tokens."""
        ...

    def book(self, cost: Cost) -> None:
        """Something was spent that no finished shard will account for (yet)."""
        ...


class Executor(Protocol):
    """Does the shards of tasks, somewhere. Tasks come one after the other."""

    def run(self, task: Task[S, T, R], listener: Listener) -> Iterator[Result[R]]:
        """Yield the result of every shard as it finishes, in any order.

        Raises the InwardError that a shard's work raised, or one that names the shard whose workers died too often.
        """
        ...

    def prepare(self, resource: Resource[Any], needs: Needs) -> None:
        """Make the resource of a task with such needs ready, where that can be done beside other work. Never raises."""
        ...

    def release(self) -> None:
        """Free the memory of all resources, because something else needs it. Workers stay."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...
