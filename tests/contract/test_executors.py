"""Whatever does shards, every shard comes back once, resources are kept, and the death of a worker costs nothing but time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inward.errors import InwardError, JudgeError, UsageError
from inward.execution.children import Gone, Nursery, how_it_died, receive
from inward.execution.complete import complete
from inward.execution.here import Here
from inward.execution.pool import MOST_DEATHS, Pool
from inward.execution.processes import Processes
from inward.execution.task import Executor, Listener, Needs, Resource, Result, Task
from inward.execution.worker import Holder, Meter, do_shard
from inward.records import Score
from inward.runs.ledger import Cost, read_costs, spent_on_judging
from inward.runs.progress import Silent
from tests.cluster import joined, started_cluster
from tests.contract import executor_work as work

ITEMS = ("a", "bb", "ccc", "dddd", "eeeee", "ffffff", "ggggggg")
MODEL = Needs(model=True)


class Backwards:
    """A third executor, which knows nothing of the other two: the last shard first, and each with a resource of its own."""

    def __init__(self) -> None:
        self.prepared: list[str] = []

    def run(self, task: Task[Any, Any, Any], listener: Listener) -> Iterator[Result[Any]]:
        for shard in reversed(task.shards):
            holder = Holder()
            value = holder.get(task.resource)
            yield do_shard(task, value, Meter(task.spent, value), shard, listener)
            holder.release()

    def prepare(self, resource: Resource[Any], needs: Needs) -> None:
        self.prepared.append(resource.kind)

    def release(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Heard:
    """A listener that keeps what it hears."""

    items: int = 0
    tokens: int = 0
    costs: list[Cost] = field(default_factory=list)

    def advance(self, items: int, tokens: int) -> None:
        self.items += items
        self.tokens += tokens

    def book(self, cost: Cost) -> None:
        self.costs.append(cost)


def processes(size: int) -> Pool[Any]:
    return Pool(Processes(size))


def actors(size: int) -> Pool[Any]:
    from inward.execution.ray import RayActors, Share, Site

    return Pool(RayActors(lambda _: Share(workers=size, cpus=1), Site(here=Path.cwd(), mark=None)))


MAKERS: dict[str, Callable[[], Executor]] = {
    "here": Here,
    "one process": partial(processes, 1),
    "two processes": partial(processes, 2),
    "two actors": partial(actors, 2),
    "a third kind": Backwards,
}
POOLS = {"processes": processes, "actors": actors}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of three nodes, which this process has joined."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    with started_cluster() as nodes, joined(nodes.address):
        yield


def make(name: str, maker: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    if "actors" in name:
        request.getfixturevalue("cluster")
    return maker()


@pytest.fixture(params=MAKERS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made = make(request.param, MAKERS[request.param], request)
    yield made
    made.close()


@pytest.fixture(params=POOLS)
def many(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Pool[Any]]]:
    """Make pools of as many workers as one asks for."""
    made: list[Pool[Any]] = []

    def start(size: int) -> Pool[Any]:
        made.append(make(request.param, partial(POOLS[request.param], size), request))
        return made[-1]

    yield start
    for pool in made:
        pool.close()


@pytest.fixture
def pool(many: Callable[[int], Pool[Any]]) -> Pool[Any]:
    return many(2)


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


def events(diary: Path) -> list[str]:
    return [line.split(" ", 1)[1] for line in diary.read_text().splitlines()]


def test_every_shard_comes_back_once_with_its_cost(executor: Executor, diary: Path) -> None:
    heard = Heard()
    task = work.task(work.tool(diary, "hammer"), work.score, ITEMS)
    results = {result.shard: result for result in executor.run(task, heard)}
    assert results.keys() == {shard.name for shard in task.shards}
    for shard in task.shards:
        result = results[shard.name]
        assert [score.output_id for score in result.records] == list(shard.items)
        assert (result.cost.part, result.cost.items, result.cost.tokens) == (shard.name, len(shard.items), 3 * len(shard.items))
        assert result.cost.judge_calls == 3 * len(shard.items)
    assert (heard.items, heard.tokens) == (len(ITEMS), 3 * len(ITEMS))
    answers = sum(cost.judge_answers for cost in [*heard.costs, *(result.cost for result in results.values())])
    assert answers == len(ITEMS), "all that was spent is booked, once"
    assert list(executor.run(replace(task, shards=()), heard)) == []


def test_an_error_of_the_work_reaches_whoever_asked(executor: Executor, diary: Path) -> None:
    heard = Heard()
    task = work.task(work.tool(diary, "hammer"), work.refuse, ("a", "b", "c", "d"))
    with pytest.raises(JudgeError, match="item c cannot be judged"):
        list(executor.run(task, heard))
    assert sum(cost.judge_answers for cost in heard.costs) == 1, "what the failed shard spent is booked"
    again = work.task(work.tool(diary, "hammer"), work.score, ITEMS)
    assert len(list(executor.run(again, heard))) == len(again.shards), "the executor can be used after an error"


def test_a_resource_that_cannot_be_made_is_one_error(executor: Executor, diary: Path) -> None:
    executor.prepare(work.tool(diary, "broken"), MODEL)
    with pytest.raises(UsageError, match="this tool cannot be made"):
        list(executor.run(work.task(work.tool(diary, "broken"), work.score, ITEMS), Heard()))


@pytest.mark.parametrize("kind", ["here", "one process"])
def test_a_resource_is_kept_renewed_or_closed(kind: str, diary: Path) -> None:
    executor = MAKERS[kind]()

    def use(resource: Resource[Any]) -> list[str]:
        before = len(events(diary)) if diary.exists() else 0
        list(executor.run(work.task(resource, work.score, ITEMS), Heard()))
        return events(diary)[before:]

    assert use(work.tool(diary, "hammer")) == ["made hammer"]
    assert use(work.tool(diary, "hammer")) == [], "the next task finds it warm"
    assert use(work.tool(diary, "saw")) == ["renewed saw"]
    assert use(work.tool(diary, "stubborn")) == ["closed saw", "made stubborn"], "what cannot be renewed is made anew"
    assert use(work.tool(diary, "saw")) == ["renewed saw"]
    assert use(work.tool(diary, "plane", renewable=False)) == ["closed saw", "made plane"]
    assert use(work.tool(diary, "file", kind="other")) == ["closed plane", "made file"]
    before = len(events(diary))
    executor.release()
    use(work.tool(diary, "file", kind="other"))
    assert events(diary)[before:] == ["closed file", "renewed file"], "what can be renewed is kept, closed"
    use(work.tool(diary, "plane", renewable=False))
    before = len(events(diary))
    executor.release()
    executor.release()
    use(work.tool(diary, "plane", renewable=False))
    assert events(diary)[before:] == ["closed plane", "made plane"], "what cannot is gone"
    executor.close()


@pytest.mark.parametrize("kind", ["here", "one process"])
def test_what_sleeps_is_kept_while_others_take_turns(kind: str, diary: Path) -> None:
    executor = MAKERS[kind]()

    def use(resource: Resource[Any]) -> list[str]:
        before = len(events(diary)) if diary.exists() else 0
        list(executor.run(work.task(resource, work.score, ITEMS), Heard()))
        return events(diary)[before:]

    def asleep(name: str) -> Resource[Any]:
        return replace(work.tool(diary, name, kind="engine"), sleeps=True)

    assert use(asleep("vllm")) == ["made vllm"]
    assert use(work.tool(diary, "judge", renewable=False)) == ["closed vllm", "made judge"], "only one is open"
    assert use(work.tool(diary, "other", kind="reference", renewable=False)) == ["closed judge", "made other"]
    assert use(asleep("new weights")) == ["closed other", "renewed new weights"], "nothing was made anew"
    executor.release()
    assert use(asleep("new weights")) == ["renewed new weights"]
    assert use(asleep("stubborn")) == ["closed new weights", "made stubborn"]
    assert use(work.tool(diary, "judge", renewable=False)) == ["closed stubborn", "made judge"]
    executor.close()


def test_on_accelerators_a_worker_lives_on_only_for_what_sleeps(diary: Path) -> None:
    """The device is a name only; what counts is which process does the work before and after all memory was asked for."""
    pool = Pool(Processes(None, ("0",)))

    def process(resource: Resource[Any]) -> str:
        list(pool.run(work.task(resource, work.score, ("a",)), Heard()))
        return diary.read_text().splitlines()[-1].split(" ", 1)[0]

    def renewed(name: str, *, sleeps: bool) -> Resource[Any]:
        return replace(work.tool(diary, name), sleeps=sleeps)

    first = process(renewed("hammer", sleeps=False))
    pool.release()
    second = process(renewed("saw", sleeps=False))
    assert first != second, "a process keeps some of its device's memory as long as it lives"
    pool.prepare(renewed("plane", sleeps=True), MODEL)
    assert process(renewed("plane", sleeps=True)) == second
    pool.release()
    assert events(diary)[-1] == "closed plane", "release returns once all is closed"
    assert process(renewed("file", sleeps=True)) == second
    assert events(diary)[-1] == "renewed file"
    os.kill(int(second), signal.SIGKILL)
    pool.release()
    assert process(renewed("file", sleeps=True)) != second
    pool.close()


def test_what_is_prepared_is_made_before_its_task_comes(pool: Pool[Any], diary: Path) -> None:
    pool.prepare(work.tool(diary, "hammer"), MODEL)
    list(pool.run(work.task(work.tool(diary, "hammer"), work.score_slowly, ITEMS), Heard()))
    assert events(diary) == ["made hammer"] * 2, "once in each worker"


def test_shards_run_at_the_same_time(pool: Pool[Any], tmp_path: Path, diary: Path) -> None:
    """Both shards wait until the other one has begun."""
    (tmp_path / "met").mkdir()
    pool.prepare(work.tool(diary, "hammer"), MODEL)
    task = work.task(work.tool(diary, "hammer"), partial(work.meet, tmp_path / "met", 2), ("a", "b"), size=1)
    assert len(list(pool.run(task, Heard()))) == 2
    other = tmp_path / "threads"
    other.mkdir()
    task = work.task(work.tool(diary, "hammer"), partial(work.meet, other, 3), ("a", "b", "c"), size=1, at_once=3)
    heard = Heard()
    results = list(Here().run(task, heard))
    assert sum(cost.judge_answers for cost in [*heard.costs, *(result.cost for result in results)]) == 3


def test_of_shards_at_the_same_time_those_that_succeed_are_kept_beside_an_error(tmp_path: Path, diary: Path) -> None:
    task = work.task(work.tool(diary, "hammer"), work.refuse, ("a", "b", "c", "d"), size=1, at_once=2)
    finished: list[str] = []

    def run() -> None:
        finished.extend(result.shard for result in Here().run(task, Heard()))

    with pytest.raises(JudgeError):
        run()
    assert {"part-0", "part-1"} <= set(finished)
    assert "part-2" not in finished


@pytest.mark.parametrize("deaths", [1, MOST_DEATHS - 1])
def test_a_shard_whose_worker_died_is_given_to_another(pool: Pool[Any], tmp_path: Path, diary: Path, deaths: int) -> None:
    task = work.task(work.tool(diary, "hammer"), partial(work.die, tmp_path, deaths), ("a", "b", "c", "d", "e"), size=1)
    results = list(pool.run(task, Heard()))
    assert sorted(result.shard for result in results) == [shard.name for shard in task.shards], "nothing is lost or doubled"
    assert len(list(tmp_path.glob("death-*"))) == deaths


def test_a_shard_that_kills_every_worker_is_named(pool: Pool[Any], tmp_path: Path, diary: Path) -> None:
    task = work.task(work.tool(diary, "hammer"), partial(work.die, tmp_path, 99), ("a", "b", "c", "d"), size=1)
    with pytest.raises(InwardError, match=rf"thinking iteration 1: scores: shard part-2 .* {MOST_DEATHS} processes died of it"):
        list(pool.run(task, Heard()))
    assert len(list(tmp_path.glob("death-*"))) == MOST_DEATHS


def test_a_worker_that_is_killed_while_it_sends_is_only_gone() -> None:
    nursery = Nursery()
    child = nursery.start(work.send_half)
    assert receive(child.connection) == "whole"
    with pytest.raises(Gone):
        receive(child.connection)
    assert how_it_died(child.process) == "killed by the system, most likely for lack of memory"
    child.end()
    nursery.close()


def test_progress_is_not_counted_twice_for_a_shard_that_begins_anew(pool: Pool[Any], tmp_path: Path, diary: Path) -> None:
    heard = Heard()
    task = work.task(work.tool(diary, "hammer"), partial(work.die_halfway, tmp_path), ("a", "b", "c", "d"), size=1)
    assert len(list(pool.run(task, heard))) == 4
    assert (heard.items, heard.tokens) == (4, 12)


def test_a_worker_that_died_while_nothing_was_to_do_is_no_shards_fault(pool: Pool[Any], diary: Path) -> None:
    task = work.task(work.tool(diary, "hammer"), work.score, ITEMS)
    list(pool.run(task, Heard()))
    for process in {int(line.split()[0]) for line in diary.read_text().splitlines()}:
        os.kill(process, signal.SIGKILL)
    time.sleep(1)
    for _ in range(MOST_DEATHS):
        assert len(list(pool.run(task, Heard()))) == len(task.shards)


def test_a_worker_sees_as_many_devices_as_its_task_needs(diary: Path) -> None:
    """The names stand for devices that are not there: what matters is which of them a process is given."""
    pool = Pool(Processes(None, ("4", "5", "6", "GPU-7")))

    def seen(devices: int, shards: int) -> list[str]:
        barrier = partial(work.see_devices, diary.with_name(f"met-{devices}"), shards)
        task = work.task(work.tool(diary, "hammer"), barrier, ITEMS[:shards], size=1)
        results = pool.run(replace(task, needs=Needs(model=True, devices=devices)), Heard())
        return sorted(result.records[0].output_id for result in results)

    assert seen(1, 4) == ["4", "5", "6", "GPU-7"], "one each"
    assert seen(2, 2) == ["4,5", "6,GPU-7"], "two each, for a model that is cut over two"
    assert seen(3, 1) == ["4,5,6"], "what is left over stays idle"
    pool.prepare(work.tool(diary, "hammer"), MODEL)
    assert seen(1, 4) == ["4", "5", "6", "GPU-7"]
    pool.close()


def test_what_others_have_finished_by_the_time_of_an_error_is_kept(
    many: Callable[[int], Pool[Any]], tmp_path: Path, diary: Path
) -> None:
    pool = many(3)
    (tmp_path / "met").mkdir()
    all_start = work.task(work.tool(diary, "hammer"), partial(work.meet, tmp_path / "met", 3), ("a", "b", "c"), size=1)
    list(pool.run(all_start, Heard()))
    task = work.task(work.tool(diary, "hammer"), work.refuse_late, ("a", "b", "c"), size=1)
    results = pool.run(task, Heard())
    finished = [next(results).shard]
    time.sleep(2)  # by now the error and the result of item b both wait to be heard

    def run() -> None:
        finished.extend(result.shard for result in results)

    with pytest.raises(JudgeError):
        run()
    assert finished == ["part-0", "part-1"]


def test_a_released_resource_is_freed_in_the_worker(diary: Path) -> None:
    """A reference model that stays in memory would take the place that training needs."""
    pool = processes(1)
    resource = Resource(kind="tool", key=("saw",), make=partial(work.hold, diary, "saw"))
    task = work.task(resource, work.score, ITEMS)
    list(pool.run(task, Heard()))
    assert "freed tool" not in events(diary)
    pool.release()
    list(pool.run(work.task(work.tool(diary, "plane"), work.score, ITEMS), Heard()))
    assert events(diary) == ["made saw", "freed tool", "made plane"]
    pool.close()


def test_a_mistake_in_the_code_is_not_tried_again(pool: Pool[Any], diary: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task = work.task(work.tool(diary, "hammer"), work.crash, ("a", "b", "c", "d"), size=1)
    with pytest.raises(
        InwardError, match=r"shard part-2 could not be done: its process died \((exit code 1|ValueError: a mistake of ours)\)"
    ):
        list(pool.run(task, Heard()))
    assert capfd.readouterr().err.count("ValueError: a mistake of ours") == 1


@pytest.mark.parametrize("kind", ["here", "one process"])
def test_what_is_spent_is_booked_while_the_shard_is_in_work(kind: str, tmp_path: Path, diary: Path) -> None:
    """A kill of all processes can hide a second's spending, not a shard's."""
    executor, ledger = MAKERS[kind](), tmp_path / "costs.jsonl"

    task = work.task(work.tool(diary, "hammer"), partial(work.spend_and_wait, tmp_path), ("a",))

    def watch() -> None:
        while sum(cost.judge_answers for cost in read_costs(ledger)) < 5:
            assert not (tmp_path / "go on").exists()
        (tmp_path / "go on").touch()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    complete(task, tmp_path / "scores", Score, executor=executor, ledger=ledger, reporter=Silent(), unit="items")
    watcher.join()
    executor.close()
    assert spent_on_judging(read_costs(ledger))["answers"] == 6
    assert sum(cost.items for cost in read_costs(ledger)) == 1
