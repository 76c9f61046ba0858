"""Several processes that do one piece of work together, such as a training step: all start at once, and all must live."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from inward.errors import InwardError
from inward.execution.children import Child, Gone, Nursery, how_it_died, receive

T = TypeVar("T")


def in_processes(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], *, advance: Callable[..., None], label: str
) -> list[T]:
    """Make each call `function(*arguments, advance)` in a fresh process of its own, all at once; return their results.

    Raises what a call raised if that is an InwardError, else InwardError that names the work whose process died. The other
    processes are ended then, as on any other exception here (Ctrl-C).
    """
    nursery = Nursery()
    team: dict[Connection, tuple[int, Child]] = {}
    try:
        for rank, arguments in enumerate(calls):
            child = nursery.start(_call, function, arguments)
            team[child.connection] = (rank, child)
        return _listen(team, advance, label)
    finally:
        for _, child in team.values():
            child.end()
        nursery.close()


def _listen(team: dict[Connection, tuple[int, Child]], advance: Callable[..., None], label: str) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = set(team)
    while waiting:
        for connection in wait(list(waiting)):
            assert isinstance(connection, Connection)
            rank, child = team[connection]
            try:
                kind, content = receive(connection)
            except Gone:
                why = how_it_died(child.process)
                raise InwardError(
                    f"{label}: its process died ({why}); what was finished is kept: run the same command again"
                ) from None
            if kind == "advance":
                advance(*content)
            elif kind == "error":
                raise content
            else:
                results[rank] = content
                waiting.remove(connection)
    return [results[rank] for rank in sorted(results)]


def _call(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    lock = threading.Lock()

    def advance(*numbers: Any) -> None:
        with lock:
            connection.send(("advance", numbers))

    try:
        result = function(*arguments, advance)
    except InwardError as error:
        connection.send(("error", error))
    else:
        connection.send(("result", result))
