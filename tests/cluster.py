"""A real Ray cluster on this machine: every node is a set of processes of its own, which can be killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass
class Nodes:
    """The head, which only the run's process is on, and nodes that do the work."""

    cluster: Any
    cpus: int

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def kill_node(self, doing: str) -> bool:
        """Kill all that is of the working node that has a process of this name, as a power cut would; False if none has."""
        for node in self.cluster.worker_nodes:
            processes = children(node.all_processes["raylet"][0].process.pid)
            if any(doing in name for name in processes.values()):
                kill(processes)
                self.cluster.remove_node(node, allow_graceful=False)
                return True
        return False

    def kill_worker(self, doing: str) -> bool:
        """Kill a process of this name on some node; False if there is none."""
        for node in self.cluster.worker_nodes:
            processes = children(node.all_processes["raylet"][0].process.pid)
            for process, name in processes.items():
                if doing in name:
                    kill([process])
                    return True
        return False

    def add_one(self) -> None:
        self.cluster.add_node(num_cpus=self.cpus)


def children(parent: int) -> dict[int, str]:
    """Return the processes that a process has started, by their ids, and what they call themselves."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it ended just now
        if int(stat.rpartition(")")[2].split()[1]) == parent:
            found[int(entry.name)] = command.decode(errors="replace")
    return found


def kill(processes: Iterable[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@contextmanager
def started_cluster(*, nodes: int = 2, cpus: int = 2, source: Path = ROOT / "src") -> Iterator[Nodes]:
    """Start a head and `nodes` that work; their processes find the package in `source`, and the tests."""
    from ray.cluster_utils import Cluster

    path = os.pathsep.join([str(source), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found = Nodes(cluster, cpus)
    try:
        for _ in range(nodes):
            found.add_one()
        yield found
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        cluster.shutdown()


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Join a cluster for the length of the block."""
    import ray

    from inward.execution.ray import join

    assert not ray.is_initialized(), "a process is in one cluster at a time"
    join(address)
    try:
        yield
    finally:
        ray.shutdown()
