"""Several threads ask one judge: one limit, one circuit, one count of what was spent, and nothing asked twice."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from inward.config import EndpointSettings
from inward.engines.endpoint.client import Backoff
from inward.engines.endpoint.shared_loop import SharedLoop
from inward.errors import JudgeError
from inward.judging.judge import Group
from inward.judging.pairwise.by_text import LLMComparer
from inward.judging.pairwise.cache import Cached
from inward.judging.pairwise.comparer import Battle, Outcome, Stopped
from inward.judging.pairwise.endpoint import EndpointChat
from inward.judging.pairwise.judge import Pairwise
from inward.judging.pairwise.scripted import ScriptedComparer
from inward.judging.spending import Spending, Tally
from inward.judging.tournament.adaptive import adaptive
from tests.build import prompt
from tests.integration.judge_server import READ, WRITTEN, JudgeServer, judge_server

THREADS, CONCURRENCY = 6, 5
BATTLES = [Battle(prompt=prompt(), first=f"a{n}", second=f"b{n}") for n in range(6)]


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(delay_s=0.004) as running:
        yield running


def chat(server: JudgeServer, **settings: Any) -> EndpointChat:
    settings = {"concurrency": CONCURRENCY, "retries": 0} | settings
    return EndpointChat(EndpointSettings(base_url=server.url, model="m", **settings), backoff=Backoff(first=0.01, most=0.05))


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.001)


def talks(name: str, count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"{name} {n}"}] for n in range(count)]


def test_threads_share_one_limit_and_each_gets_its_own_replies(server: JudgeServer) -> None:
    endpoint, parts = chat(server), [talks(str(n), 30) for n in range(THREADS)]
    expected = [chat(server, concurrency=1).complete(part, max_tokens=99) for part in parts[:2]]
    server.most_at_once = 0
    server.asked.clear()
    with ThreadPoolExecutor(THREADS) as pool:
        replies = list(pool.map(lambda part: endpoint.complete(part, max_tokens=99), parts))
    assert replies[:2] == expected
    assert server.most_at_once == CONCURRENCY
    assert len(server.asked) == len(set(server.asked)) == THREADS * 30
    assert endpoint.costs() == Spending(answers=180, prompt_tokens=180 * READ, completion_tokens=180 * WRITTEN)


def test_a_short_call_does_not_wait_for_the_end_of_a_long_one(server: JudgeServer) -> None:
    endpoint = chat(server, concurrency=2)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(endpoint.complete, talks("long", 120), max_tokens=99)
        wait_until(lambda: len(server.asked) > 3)
        endpoint.complete(talks("short", 6), max_tokens=99)
        long.result()
    last = max(index for index, text in enumerate(server.asked) if text.startswith("short"))
    assert last < 60, "they take turns"


def test_one_circuit_stops_all_threads_and_each_keeps_what_it_was_answered(server: JudgeServer) -> None:
    endpoint = chat(server)
    server.stop_after = 40
    stops: list[Stopped] = []

    def ask(name: int) -> None:
        try:
            endpoint.complete(talks(str(name), 100), max_tokens=99)
        except Stopped as stop:
            stops.append(stop)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(ask, range(THREADS)))
    assert len(stops) == THREADS
    assert len({str(stop) for stop in stops}) == 1, "they are told the same"
    kept = sum(reply.text is not None for stop in stops for reply in stop.answered.values())
    assert kept == endpoint.costs().answers
    assert 40 - CONCURRENCY <= kept <= 40, "what was under way when the port closed may be lost"
    assert len(server.asked) <= 40 + 2 * CONCURRENCY
    server.stop_after = None
    server.start()
    assert endpoint.complete(talks("again", 3), max_tokens=99)[2].text


def test_spending_is_read_whole_while_answers_come_in(server: JudgeServer) -> None:
    endpoint = chat(server, price_in=1.0, price_out=2.0)
    seen: list[Spending] = []
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(endpoint.complete, talks(name, 60), max_tokens=99) for name in "ab"]
        while not all(call.done() for call in calls):
            seen.append(endpoint.costs())
            time.sleep(0.001)
    seen.append(endpoint.costs())
    assert seen[-1].answers == 120
    assert len({spending.answers for spending in seen}) > 3, "it was read on the way"
    for before, spending in itertools.pairwise(seen):
        assert before.answers <= spending.answers
        assert spending.prompt_tokens == READ * spending.answers
        assert spending.money == pytest.approx(spending.answers * (READ + 2 * WRITTEN) / 1e6)


def test_a_tally_loses_nothing_that_threads_add() -> None:
    tally = Tally()

    def add(_: int) -> None:
        for _ in range(500):
            tally.add(Spending(answers=1, money=0.5))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert tally.read() == Spending(answers=4000, money=2000.0)


def test_whole_tournaments_in_threads_are_those_of_one_thread_after_the_other(server: JudgeServer, tmp_path: Path) -> None:
    shards = [
        [
            Group(prompt=prompt(f"q{s}.{n}", id=f"{s}.{n}"), responses=tuple(f"{s}{n} {'x' * r}" for r in range(4)))
            for n in range(3)
        ]
        for s in range(4)
    ]

    def judge(folder: Path) -> Pairwise:
        comparer = Cached(LLMComparer(chat=chat(server)), folder)
        return Pairwise(comparer=comparer, scheme=adaptive(rho=0.1), scheme_name="adaptive")

    alone = judge(tmp_path / "alone")
    expected = [alone.judge(shard) for shard in shards]
    asked = sorted(server.asked)
    server.asked.clear()
    together = judge(tmp_path / "together")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(together.judge, shards)) == expected
    assert sorted(server.asked) == asked
    assert together.costs() == alone.costs()


def test_what_one_thread_is_asking_another_waits_for(tmp_path: Path) -> None:
    """The outcome of a battle is that of the first who asked, whatever the judge would say the second time."""
    begun, go_on = threading.Event(), threading.Event()
    asked: list[Battle] = []

    def decide(battle: Battle) -> float:
        asked.append(battle)
        begun.set()
        assert go_on.wait(10)
        return 1.0 if asked.count(battle) == 1 else -1.0

    cached = Cached(ScriptedComparer(decide=decide), tmp_path, chunk=2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cached.compare, BATTLES[:4])
        assert begun.wait(10)
        second = pool.submit(cached.compare, BATTLES[2:])
        go_on.set()
        assert {outcome.value for outcome in (*first.result(10), *second.result(10))} == {1.0}
    assert sorted(battle.first for battle in asked) == [battle.first for battle in BATTLES]


def test_what_another_thread_failed_to_ask_is_asked(tmp_path: Path) -> None:
    begun, fail = threading.Event(), threading.Event()

    class Failing:
        name, calls = "failing once", 0

        def costs(self) -> Spending:
            return Spending()

        def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
            self.calls += 1
            if self.calls > 1:
                return ScriptedComparer().compare(battles)
            begun.set()
            assert fail.wait(10)
            raise Stopped("gone", {0: Outcome(value=1.0)})

    cached = Cached(Failing(), tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cached.compare, BATTLES)
        assert begun.wait(10)
        second = pool.submit(cached.compare, BATTLES)
        fail.set()
        with pytest.raises(JudgeError, match="gone"):
            first.result(10)
        assert [outcome.value for outcome in second.result(10)] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_a_shared_loop_lives_as_long_as_a_call_and_hands_on_what_is_raised() -> None:
    opened, closed = [], []

    async def close(session: int) -> None:
        closed.append(session)

    def open_session() -> int:
        opened.append(len(opened))
        return opened[-1]

    async def work(session: int) -> int:
        await asyncio.sleep(0)
        return session

    async def fail(session: int) -> int:
        raise KeyError(session)

    before = threading.active_count()
    loop = SharedLoop(open_session, close)
    assert loop.run(work) == 0
    with pytest.raises(KeyError):
        loop.run(fail)
    assert (opened, closed, threading.active_count()) == ([0, 1], [0, 1], before)
    barrier = threading.Barrier(4)

    def meet(_: int) -> int:
        barrier.wait(10)
        return loop.run(lambda session: asyncio.sleep(0.05, session))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(meet, range(4)))) == 1, "they share one session"
    assert opened == closed


def test_an_endpoint_can_be_asked_where_an_event_loop_runs(server: JudgeServer) -> None:
    async def main() -> str | None:
        return chat(server).complete(talks("q", 1), max_tokens=99)[0].text

    assert asyncio.run(main())


def test_an_interrupted_call_leaves_nothing_under_way(server: JudgeServer) -> None:
    endpoint, main = chat(server), threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        wait_until(lambda: len(server.asked) > 3)
        signal.pthread_kill(main, signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            endpoint.complete(talks("q", 2000), max_tokens=99)
    asked = len(server.asked)
    assert asked < 2000
    assert endpoint.complete(talks("later", 1), max_tokens=99)[0].text
    assert len(server.asked) <= asked + CONCURRENCY + 1, "what was on its way, and the one that was asked later"
