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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from inward.costs import Cost, append_cost, peak_memory
from inward.errors import InwardError
from inward.shards import read_shard, shard_paths, write_shard

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose work it is: what a cost row is booked under."""

    arm: str
    iteration: int
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """The shards of one stage that are still to do. `tokens` and `calls` count a record's cost; all must pickle."""

    place: Place
    record_type: type[Any]
    paths: tuple[Path, ...]
    groups: tuple[tuple[Any, ...], ...]
    start: Callable[[], Any]
    work: Callable[[Any, Sequence[Any], Advance], list[Any]]
    tokens: Callable[[Any], int]
    calls: Callable[[Any], int]
    costs: Path


def none(_: Any) -> int:
    """Count nothing: for stages whose records cost no tokens or no calls."""
    return 0


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
) -> list[R]:
    """Do the missing shards of a stage and return all its records, in the order of the groups."""
    paths = shard_paths(folder, [[identify(item) for item in group] for group in groups])
    missing = [n for n, path in enumerate(paths) if not path.exists()]
    if missing:
        job = ShardJob(
            place=place,
            record_type=record_type,
            paths=tuple(paths[n] for n in missing),
            groups=tuple(tuple(groups[n]) for n in missing),
            start=start,
            work=work,
            tokens=tokens,
            calls=calls,
            costs=costs,
        )
        label = f"{place.arm} iteration {place.iteration}: {place.stage}"
        reporter.begin(label, sum(len(group) for group in job.groups), unit)
        in_process(_do_shards, job, advance=reporter.advance, isolate=isolate, label=label)
        reporter.end()
    return [record for path in paths for record in read_shard(path, record_type)]


def _do_shards(job: ShardJob, advance: Advance) -> None:
    shared = job.start()
    for path, group in zip(job.paths, job.groups, strict=True):
        began = time.perf_counter()
        records = job.work(shared, group, advance)
        seconds = time.perf_counter() - began
        append_cost(
            job.costs,
            Cost(
                arm=job.place.arm,
                iteration=job.place.iteration,
                stage=job.place.stage,
                part=path.stem,
                seconds=seconds,
                device_seconds=seconds * devices(),
                items=len(group),
                tokens=sum(map(job.tokens, records)),
                judge_calls=sum(map(job.calls, records)),
                peak_memory=peak_memory(),
            ),
        )
        write_shard(path, job.record_type, records)


def devices() -> int:
    """Return how many accelerators this process can use (without loading torch for it)."""
    import sys

    torch = sys.modules.get("torch")
    return int(torch.cuda.device_count()) if torch is not None else 0


def in_process(function: Callable[..., T], *arguments: Any, advance: Callable[..., None], isolate: bool, label: str) -> T:
    """Call `function(*arguments, advance)` here, or in a fresh process, and return its result.

    Raises what the function raised if it is an InwardError; InwardError naming the stage if its process died.
    """
    if not isolate:
        return function(*arguments, advance)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    alive, watched = context.Pipe()
    process = context.Process(target=_child, args=(theirs, watched, function, arguments), daemon=True)
    process.start()
    theirs.close()
    watched.close()
    try:
        result: T = _listen(ours, process, advance, label)
        return result
    finally:
        process.terminate()
        process.join()
        alive.close()


def _listen(ours: Connection, process: Any, advance: Callable[..., None], label: str) -> Any:
    while True:
        try:
            kind, content = ours.recv()
        except EOFError:
            process.join()
            code = process.exitcode
            why = "killed by the system, most likely for lack of memory" if code == -signal.SIGKILL else f"exit code {code}"
            raise InwardError(
                f"{label}: its process died ({why}); what was finished is kept: run the same command again"
            ) from None
        if kind == "advance":
            advance(*content)
        elif kind == "error":
            raise content
        else:
            return content


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
