"""The workers of a Ray cluster: actors, each with CPUs or an accelerator of its own, on whatever node has them free.

They wait in the queue of `pool` like processes of this machine, so Ray's part is to place them, to carry messages, and to find
out who died. Its own retries are off (`max_restarts`, `max_task_retries`): they would hide the deaths that the queue counts.

An actor hears (`tell`) and speaks (`listen`, a stream that lasts as long as it does). First it says where it is and what it
runs: one with another version of the package, or that does not see the run directory, would make other records or none.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import queue
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

import inward
from inward.errors import UsageError
from inward.execution.pool import MOST_DEATHS, Death
from inward.execution.serve import serve
from inward.execution.task import Needs, Task
from inward.models.origins import ORIGINS
from inward.storage import TEMPORARY, storage_errors

ANSWER_S = 5.0
"""How long a cluster may take to answer at its address. Ray itself would try for two minutes and end the process then."""
PACKAGES = ("torch", "transformers")
"""Packages of which another version computes other numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What each worker takes of the node that it is on, how many there are, and how many accelerators the cluster has."""

    workers: int
    cpus: int
    gpus: int = 0
    accelerators: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """How a process on another node finds what is here: the folder that paths are relative to, and a file in the run's."""

    here: Path
    mark: Path | None

    def enter(self) -> None:
        """Take paths from where the run's process takes them. Raises UsageError where the run directory is not to be seen."""
        with suppress(OSError):  # without it relative paths lead nowhere, which the mark shows
            os.chdir(self.here)
        if self.mark is not None and not self.mark.exists():
            raise UsageError(
                f"node {socket.gethostname()} does not see the run directory {self.mark.parent}: put it, and the models of the "
                "recipe, into a folder that all nodes share under the same name"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What a worker runs: the versions that its records depend on, by name, the package's own code as a digest."""

    node: str
    versions: dict[str, str]


def join(address: str) -> None:
    """Join the cluster at an address, once. Raises UsageError where there is none, or where it runs another Ray."""
    if ray.is_initialized():
        return
    host, _, port = address.rpartition(":")
    hint = "set execution.ray to HOST:PORT of its head node, or to 'auto' on a node of the cluster (`ray start`)"
    if address.startswith("ray://"):
        raise UsageError(
            f"execution.ray = {address!r} is the address of a Ray client, which loses workers and messages: {hint}"
        )
    try:
        if address != "auto":
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError, SystemExit) as error:  # Ray ends the process where nobody answers in the end
        raise UsageError(f"no Ray cluster can be joined at execution.ray = {address!r} ({error}): {hint}") from error


def share_of(workers: int | None, threads: int | None, devices: int = 1) -> Share:
    """Return what each worker takes: so many accelerators where the cluster has any, else CPUs, `threads` or its part.

    Without a number of `workers` there is one for every group of accelerators on one node, or one a node. A model that is cut
    over several fills them, so there are never more workers than groups for it.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    found = [int(node.get("GPU", 0)) for node in nodes]
    if any(found):
        groups = sum(count // devices for count in found)
        count = workers or max(1, groups)
        return Share(
            workers=count if devices == 1 else min(count, max(1, groups)),
            cpus=threads or 1,
            gpus=devices,
            accelerators=sum(found),
        )
    count = workers or max(1, len(nodes))
    fair = min([int(sum(node["CPU"] for node in nodes) // count), *(int(node["CPU"]) for node in nodes)])
    return Share(workers=count, cpus=threads or max(1, fair))


def require_room(share: Share) -> None:
    """Raise UsageError where no node could ever hold a worker: it would be waited for without an end."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= share.cpus and node.get("GPU", 0) >= share.gpus for node in nodes):
        raise UsageError(
            f"no node of the cluster has the {share.cpus} CPUs and {share.gpus} accelerators that a worker takes: lower "
            "execution.threads, or let a larger node join"
        )


@contextmanager
def marked(folder: Path | None) -> Iterator[Site]:
    """Give the site of a run for the length of the block: a file in its folder that whoever sees the folder sees as well."""
    mark = None if folder is None else folder.absolute() / f"{TEMPORARY}seen-{uuid.uuid4().hex}"
    if mark is not None:
        with storage_errors(mark):
            mark.touch()
    try:
        yield Site(here=Path.cwd(), mark=mark)
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)


@functools.cache
def build() -> Build:
    """Return what this process runs."""
    digest, package = hashlib.sha256(), Path(inward.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    versions = {"inward": f"{metadata.version('inward')} ({digest.hexdigest()[:12]})"}
    return Build(node=socket.gethostname(), versions=versions | {name: metadata.version(name) for name in PACKAGES})


def check_build(theirs: Build, ours: Build) -> None:
    """Raise UsageError where another node runs other code than the run's process."""
    pairs = [(name, theirs.versions[name], version) for name, version in ours.versions.items()]
    differ = [f"{name} {there} there, {here} here" for name, there, here in pairs if there != here]
    if differ:
        raise UsageError(
            f"node {theirs.node} runs other versions than the run's process: {'; '.join(differ)}. Its records would differ: "
            "install the same versions on all nodes"
        )


def _brief(error: RayError) -> str:
    """Return what Ray says about a death, without what it supposes about its causes."""
    return str(error).strip().rpartition("\n")[2].partition(" Some common causes")[0]


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    stream: Any
    crew: RayActors
    ready: bool = False  # it has said where it runs

    def send(self, message: Any) -> None:
        self.handle.tell.remote(self.crew.pickled(message))

    def end(self) -> None:
        ray.kill(self.handle, no_restart=True)


class RayActors:
    """A `Crew` of actors. They end to give back what they took, as the cluster lends it to nobody else before.

    `share` says what each takes of the cluster for a model on so many accelerators. It is asked where that number changes, and
    not for every node that comes or goes: warm workers would be lost.
    """

    def __init__(self, share: Callable[[int], Share], site: Site) -> None:
        self._share_for, self._site = share, site
        self._share, self._devices = share(1), 1
        self._stillborn = 0  # workers in a row that died before they could do anything
        self._task: tuple[Any, Any] = (None, None)  # the last one, and where all nodes find it

    @property
    def size(self) -> int:
        return self._share.workers

    def regroup(self, needs: Needs) -> bool:
        if needs.devices == self._devices:
            return False
        before, self._share, self._devices = self._share, self._share_for(needs.devices), needs.devices
        return before != self._share

    def must_end(self, sleeps: bool) -> bool:
        return True

    def start(self, number: int) -> _Actor:
        require_room(self._share)
        # Declared here and not where the class is: Ray wraps classes, and `_Serving` is plain to whoever reads it.
        remote = ray.remote(
            num_cpus=self._share.cpus,
            num_gpus=self._share.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            concurrency_groups={"speaking": 1},
        )(_Serving)
        handle = remote.remote()
        speaking = handle.listen.options(num_returns="streaming", concurrency_group="speaking")
        return _Actor(handle, speaking.remote(self._site), self)

    def hear(self, workers: Iterable[_Actor], timeout: float | None) -> Iterator[tuple[_Actor, Any]]:
        by_stream = {worker.stream: worker for worker in workers}
        heard = ray.wait(list(by_stream), num_returns=1, timeout=timeout)[0] if by_stream else ()
        for stream in heard:
            worker = by_stream[stream]
            try:
                message = ray.get(next(stream))
            except StopIteration:
                message = Death("its actor ended")
            except RayTaskError as error:
                sys.stderr.write(f"{error}\n")
                message = Death(f"{type(error.cause).__name__}: {error.cause}", mistake=True)
            except RayError as error:
                failed = isinstance(error, ActorDiedError) and error.actor_init_failed
                message = Death(_brief(error), mistake=failed)
            if isinstance(message, Build):
                check_build(message, build())
                worker.ready, self._stillborn = True, 0
            else:
                self._count_stillborn(worker, message)
                yield worker, message

    def close(self) -> None:
        """Stay in the cluster: a process leaves it when it ends, and with it what it has left there."""

    def pickled(self, message: Any) -> Any:
        """Return a message as an actor takes it; a task, which all of them are told, is sent to a node once."""
        told = pickle.dumps((os.environ.get(ORIGINS, "{}"), message))  # with what this machine's models were made from
        if not isinstance(message, Task):
            return told
        if self._task[0] is not message:
            self._task = (message, ray.put(told))
        return self._task[1]

    def _count_stillborn(self, worker: _Actor, message: Any) -> None:
        """Raise UsageError where workers die before they can do anything: others would be started without an end."""
        if worker.ready or not isinstance(message, Death):
            return
        self._stillborn += 1
        if message.mistake or self._stillborn >= MOST_DEATHS:
            raise UsageError(
                f"a worker cannot start on the cluster ({message.why}): all nodes need inward and its packages, in the "
                "versions that are installed here"
            )


class _Serving:
    """What an actor is: it serves in a thread, and is joined to the run's process by two calls."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def tell(self, message: bytes) -> None:
        self._inbox.put(message)

    def listen(self, site: Site) -> Iterator[Any]:
        yield build()
        threading.Thread(target=self._serve, args=(site,), daemon=True).start()
        while True:
            message = self._outbox.get()
            if isinstance(message, _Mistake):
                raise message.error
            yield message

    def recv(self) -> Any:
        os.environ[ORIGINS], message = pickle.loads(self._inbox.get())
        return message

    def send(self, message: Any) -> None:
        self._outbox.put(message)

    def _serve(self, site: Site) -> None:
        try:
            site.enter()
            serve(self)
        except UsageError as error:
            self.send(error)
        except BaseException as error:  # noqa: BLE001 (it is raised again where the run's process hears of it)
            self.send(_Mistake(error))


@dataclass(frozen=True, slots=True)
class _Mistake:
    error: BaseException
