"""How stages run: cut into shards, each done once, on accelerators in a process of their own.

A stage hands over two functions. `start` makes what all its shards share (an engine, a judge); `work` turns the items of
one shard into records. Neither knows of folders or processes. With `isolate` both run in a fresh process, which gives the
accelerator back when it ends and dies at once when its parent does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, TypeVar

from inward.errors import InwardError
from inward.hardware import give_back_memory
from inward.running.costs import Cost, append_cost, peak_memory
from inward.running.shards import read_shard, shard_paths, write_shard

T = TypeVar("T")
R = TypeVar("R")
Advance = Callable[[int, int], None]
"""Called with (items, tokens) done since the last call."""


class Reporter(Protocol):
    """Whoever tells the user how far a stage is."""

    def begin(self, label: str, total: int, unit: str) -> None: ...

    def advance(self, items: int, tokens: int) -> None: ...

    def end(self, note: str = "") -> None: ...

    def say(self, line: str) -> None: ...


class Silent:
    """A reporter that says nothing: for stages too short to show, and for tests."""

    def begin(self, label: str, total: int, unit: str) -> None: ...

    def advance(self, items: int, tokens: int) -> None: ...

    def end(self, note: str = "") -> None: ...

    def say(self, line: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose work it is: what a cost row is booked under."""

    arm: str
    iteration: int
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """The shards of one stage that are still to do. `tokens` and `calls` count a record's cost; all must pickle.

    `spent` returns what the thing that `start` made has spent so far, by the names of a cost row's fields.
    """

    place: Place
    record_type: type[Any]
    paths: tuple[Path, ...]
    groups: tuple[tuple[Any, ...], ...]
    start: Callable[[], Any]
    work: Callable[[Any, Sequence[Any], Advance], list[Any]]
    tokens: Callable[[Any], int]
    calls: Callable[[Any], int]
    spent: Callable[[Any], dict[str, Any]]
    costs: Path


def none(_: Any) -> int:
    """Count nothing: for stages whose records cost no tokens or no calls."""
    return 0


def nothing(_: Any) -> dict[str, Any]:
    """Spend nothing beside time: for stages that ask no judge."""
    return {}


def one(_: Any) -> int:
    return 1


def cut(items: Sequence[T], size: int, key: Callable[[T], str]) -> list[list[T]]:
    """Cut items into shards of `size` distinct keys each, keeping items of one key together, in their order."""
    by_key: dict[str, list[T]] = {}
    for item in items:
        by_key.setdefault(key(item), []).append(item)
    keys = list(by_key)
    return [[item for k in keys[n : n + size] for item in by_key[k]] for n in range(0, len(keys), size)]


def run_shards(
    folder: Path,
    record_type: type[R],
    groups: Sequence[Sequence[T]],
    *,
    identify: Callable[[T], str],
    place: Place,
    start: Callable[[], Any],
    work: Callable[[Any, Sequence[T], Advance], list[R]],
    costs: Path,
    reporter: Reporter,
    unit: str,
    isolate: bool,
    tokens: Callable[[R], int] = none,
    calls: Callable[[R], int] = none,
    spent: Callable[[Any], dict[str, Any]] = nothing,
    units_per_item: int = 1,
    workers: int = 1,
    label: str | None = None,
) -> list[R]:
    """Do the missing shards of a stage and return all its records, in the order of the groups.

    Progress is told in `unit`s, of which an item is `units_per_item`. More than one of `workers` means that many processes.
    `label` is what the user is told is done: arm, iteration and stage unless given.
    """
    paths = shard_paths(folder, [[identify(item) for item in group] for group in groups])
    missing = [n for n, path in enumerate(paths) if not path.exists()]
    if missing:
        shares = [missing[n::workers] for n in range(min(workers, len(missing)))]
        jobs = [
            ShardJob(
                place=place,
                record_type=record_type,
                paths=tuple(paths[n] for n in share),
                groups=tuple(tuple(groups[n]) for n in share),
                start=start,
                work=work,
                tokens=tokens,
                calls=calls,
                spent=spent,
                costs=costs,
            )
            for share in shares
        ]
        label = label or f"{place.arm} iteration {place.iteration}: {place.stage}"
        reporter.begin(label, units_per_item * sum(len(groups[n]) for n in missing), unit)
        if len(jobs) == 1 and not isolate:
            _do_shards(jobs[0], reporter.advance)
            give_back_memory()
        else:
            in_processes(_do_shards, [(job,) for job in jobs], advance=reporter.advance, label=label)
        reporter.end()
    return [record for path in paths for record in read_shard(path, record_type)]


def _do_shards(job: ShardJob, advance: Advance) -> None:
    shared = job.start()
    for path, group in zip(job.paths, job.groups, strict=True):
        began, before, records = time.perf_counter(), job.spent(shared), None
        try:
            records = job.work(shared, group, advance)
        finally:
            spent = {name: value - before[name] for name, value in job.spent(shared).items()}
            if records is not None or any(spent.values()):  # what a failed shard spent is spent all the same
                _book(job, path.stem, len(group), records or [], time.perf_counter() - began, spent)
        write_shard(path, job.record_type, records)


def _book(job: ShardJob, part: str, items: int, records: Sequence[Any], seconds: float, spent: dict[str, Any]) -> None:
    cost = Cost(
        arm=job.place.arm,
        iteration=job.place.iteration,
        stage=job.place.stage,
        part=part,
        seconds=seconds,
        device_seconds=seconds * devices(),
        items=items,
        tokens=sum(map(job.tokens, records)),
        judge_calls=sum(map(job.calls, records)),
        peak_memory=peak_memory(),
        **spent,
    )
    append_cost(job.costs, cost)


def devices() -> int:
    """Return how many accelerators a stage uses: one where there are any (without loading torch to find out)."""
    import sys

    torch = sys.modules.get("torch")
    return min(1, int(torch.cuda.device_count())) if torch is not None else 0


def in_processes(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], *, advance: Callable[..., None], label: str
) -> list[T]:
    """Make each call `function(*arguments, advance)` in a fresh process of its own, all at once; return their results.

    Raises what a call raised if that is an InwardError, else InwardError naming the stage whose process died. The other
    processes are ended then, as on any other exception here (Ctrl-C).
    """
    context = multiprocessing.get_context("spawn")
    alive, watched = context.Pipe()
    workers: dict[Connection, tuple[int, Any]] = {}
    try:
        for n, arguments in enumerate(calls):
            ours, theirs = context.Pipe()
            process = context.Process(target=_child, args=(theirs, watched, function, arguments), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = (n, process)
        watched.close()
        return _listen(workers, advance, label)
    finally:
        for _, process in workers.values():
            process.terminate()
            process.join()
        alive.close()


def _listen(workers: dict[Connection, tuple[int, Any]], advance: Callable[..., None], label: str) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = set(workers)
    while waiting:
        for connection in wait(list(waiting)):
            assert isinstance(connection, Connection)
            number, process = workers[connection]
            try:
                kind, content = connection.recv()
            except EOFError:
                process.join()
                raise _died(process.exitcode, label) from None
            if kind == "advance":
                advance(*content)
            elif kind == "error":
                raise content
            else:
                results[number] = content
                waiting.remove(connection)
    return [results[number] for number in sorted(results)]


def _died(code: int, label: str) -> InwardError:
    killed = code == -signal.SIGKILL
    why = "killed by the system, most likely for lack of memory" if killed else f"exit code {code}"
    return InwardError(f"{label}: its process died ({why}); what was finished is kept: run the same command again")


def _child(theirs: Connection, watched: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends this process
    threading.Thread(target=_die_with_parent, args=(watched,), daemon=True).start()
    lock = threading.Lock()

    def advance(*numbers: Any) -> None:
        with lock:
            theirs.send(("advance", numbers))

    try:
        result = function(*arguments, advance)
    except InwardError as error:
        theirs.send(("error", error))
    else:
        theirs.send(("result", result))


def _die_with_parent(watched: Connection) -> None:
    try:
        watched.recv()
    except EOFError:
        os._exit(1)
