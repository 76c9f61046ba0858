"""Processes of our own: started fresh, heard through a pipe, and gone when their parent is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Child:
    """A process and this side of the pipe to it."""

    process: SpawnProcess
    connection: Connection

    def end(self) -> None:
        """End the process, whatever it does, and wait until it is gone."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


class Nursery:
    """Starts children that die with this process, however it dies: each holds one end of a pipe that then closes."""

    def __init__(self) -> None:
        self._watched, self._alive = CONTEXT.Pipe(duplex=False)

    def start(self, function: Callable[..., None], *arguments: Any) -> Child:
        """Start `function(connection, *arguments)` in a process of its own."""
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_begin, args=(theirs, self._watched, function, arguments), daemon=True)
        process.start()
        theirs.close()
        return Child(process, ours)

    def close(self) -> None:
        self._alive.close()
        self._watched.close()


class Gone(Exception):
    """The process at the other end of a pipe has ended, perhaps in the middle of a message."""


def receive(connection: Connection) -> Any:
    """Return the next message of a child. Raises Gone where there will be none."""
    try:
        return connection.recv()
    except (EOFError, OSError) as error:  # OSError: it was killed while it sent
        raise Gone from error


def how_it_died(process: SpawnProcess) -> str:
    """Say why a process is gone. Call once it has ended."""
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return "killed by the system, most likely for lack of memory"
    return f"exit code {process.exitcode}"


def _begin(connection: Connection, watched: Connection, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends this process
    threading.Thread(target=_die_with_parent, args=(watched,), daemon=True).start()
    function(connection, *arguments)


def _die_with_parent(watched: Connection) -> None:
    try:
        watched.recv()
    except EOFError:
        os._exit(1)
