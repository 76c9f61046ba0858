"""A cluster that cannot be used says why and what to do, before anything has been waited for."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inward.config import ExecutionSettings
from inward.errors import MissingExtraError, UsageError
from inward.execution import choose
from inward.execution.pool import Pool
from inward.runs.progress import Silent
from tests.cluster import ROOT, Nodes, joined, started_cluster
from tests.contract import executor_work as work

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster of a head and one node of two CPUs, which this process has joined."""
    with started_cluster(nodes=1) as started, joined(started.address):
        yield started


def run(folder: Path, *, cpus: int = 1, mark: Path | None = None) -> None:
    """Have a worker do a shard."""
    from inward.execution.ray import RayActors, Share, Site

    pool = Pool(RayActors(lambda _: Share(workers=1, cpus=cpus), Site(here=Path.cwd(), mark=mark)))
    task = work.task(work.tool(folder / "diary", "hammer"), work.score, ("a",))
    list(pool.run(task, Deaf()))


class Deaf(Silent):
    """A reporter that can be told of costs."""

    def book(self, cost: Any) -> None: ...


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'inward\[ray\]'"),
        choose.executing(ExecutionSettings(ray="auto")),
    ):
        pass


@needs_ray
@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "nonsense", "closed port"])
def test_an_address_where_no_cluster_answers_is_refused(address: str) -> None:
    if address == "closed port":
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers, and nobody else can take it meanwhile
            with pytest.raises(UsageError, match=r"execution\.ray = '127.*Connection refused.*HOST:PORT"):
                choose.count_workers(ExecutionSettings(ray=f"127.0.0.1:{held.getsockname()[1]}"))
        return
    with pytest.raises(UsageError, match=rf"execution\.ray = '{address}.*HOST:PORT"):
        choose.count_workers(ExecutionSettings(ray=address))


@needs_ray
def test_a_node_with_another_version_is_named() -> None:
    from inward.execution.ray import build, check_build

    ours = build()
    check_build(ours, ours)
    theirs = replace(ours, node="node-7", versions=ours.versions | {"torch": "1.0"})
    with pytest.raises(UsageError, match=rf"node-7 .*torch 1\.0 there, {ours.versions['torch'].replace('+', '.')} here"):
        check_build(theirs, ours)


@needs_ray
def test_a_node_whose_source_differs_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "src", other, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "inward" / "errors.py").open("a") as file:
        file.write("# changed\n")
    said = pytest.raises(UsageError, match=r"runs other versions than the run's process: inward .* there, .* here")
    with started_cluster(nodes=1, source=other) as started, joined(started.address), said:
        run(tmp_path)


@needs_ray
def test_a_node_without_the_package_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "inward").mkdir(parents=True)
    (broken / "inward" / "__init__.py").touch()
    said = pytest.raises(UsageError, match=r"a worker cannot start on the cluster .*all nodes need inward")
    with started_cluster(nodes=1, source=broken) as started, joined(started.address), said:
        run(tmp_path)


@needs_ray
def test_without_numbers_there_is_a_worker_for_each_node_that_has_cpus(nodes: Nodes) -> None:
    from inward.execution.ray import Share, share_of

    assert share_of(None, None) == Share(workers=1, cpus=2)
    assert share_of(2, None) == Share(workers=2, cpus=1)
    assert share_of(None, 1) == Share(workers=1, cpus=1)
    assert choose.count_workers(ExecutionSettings(ray=nodes.address)) == 1
    assert choose.count_accelerators(ExecutionSettings(ray=nodes.address)) == 0


@needs_ray
def test_a_worker_that_no_node_has_room_for_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no node of the cluster has the 99 CPUs .* lower execution\.threads"):
        run(tmp_path, cpus=99)


@needs_ray
def test_a_node_that_does_not_see_the_run_directory_is_named(nodes: Nodes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"node {socket.gethostname()} does not see the run directory {tmp_path}: .* share"):
        run(tmp_path, mark=tmp_path / "elsewhere")
