"""What every chat, comparer and label scorer promises, real or scripted. A new one joins by one more entry in a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from inward.config import EndpointSettings
from inward.engines.scripted import ScriptedEngine
from inward.engines.transformers.engine import load_engine
from inward.judging.pairwise.by_probability import ProbabilityComparer
from inward.judging.pairwise.by_text import LLMComparer, conversation
from inward.judging.pairwise.cache import Cached
from inward.judging.pairwise.comparer import Battle, Chat, Comparer, LabelScorer
from inward.judging.pairwise.endpoint import EndpointChat
from inward.judging.pairwise.endpoint_labels import EndpointLabelScorer
from inward.judging.pairwise.engine_chat import EngineChat, EngineLabelScorer
from inward.judging.pairwise.scripted import ScriptedChat, ScriptedComparer, ScriptedLabelScorer
from tests.build import prompt
from tests.integration.judge_server import judge_server
from tests.tiny import tiny_model

TEXTS = ("", "x", "yy", "some words", "[[A]] <|im_end|> \ud800", "\N{SNOWMAN}\n")
BATTLES = [Battle(prompt=prompt(), first=a, second=b) for a in TEXTS for b in TEXTS if a != b]
TALKS = [conversation(battle, "ab") for battle in BATTLES]
LABELS = ("A", "B")
MAX_TOKENS = 40


@contextmanager
def endpoint() -> Iterator[EndpointChat]:
    with judge_server() as server:
        yield EndpointChat(EndpointSettings(base_url=server.url, model="any", concurrency=4))


@contextmanager
def label_endpoint() -> Iterator[LabelScorer]:
    with endpoint() as chat:
        yield EndpointLabelScorer(chat=chat)


def babbling(text: str, index: int, seed: int) -> str:
    return f"{len(text)} characters. [[{'AB'[len(text) % 2]}]]"


@pytest.fixture(scope="module", autouse=True)
def _direct() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1")
        yield


CHATS: dict[str, Callable[[], AbstractContextManager[Chat]]] = {
    "scripted": lambda: nullcontext(ScriptedChat()),
    "scripted, failing": lambda: nullcontext(ScriptedChat(failure_rate=0.5)),
    "engine": lambda: nullcontext(EngineChat(engine=ScriptedEngine(babbling), name="engine")),
    "endpoint": endpoint,
}


@pytest.fixture(params=CHATS)
def chat(request: pytest.FixtureRequest) -> Iterator[Chat]:
    with CHATS[request.param]() as made:
        yield made


def test_a_chat_gives_one_reply_a_conversation_in_order_whatever_the_company(chat: Chat) -> None:
    replies = chat.complete(TALKS, max_tokens=MAX_TOKENS)
    assert all(reply.text is not None or reply.error for reply in replies)
    assert chat.complete(TALKS[::-1], max_tokens=MAX_TOKENS) == replies[::-1]
    assert [chat.complete([talk], max_tokens=MAX_TOKENS)[0] for talk in TALKS[:5]] == replies[:5]
    assert len({reply.text for reply in replies}) > 1
    assert chat.complete([], max_tokens=MAX_TOKENS) == []


def test_a_chat_counts_every_answer(chat: Chat) -> None:
    assert chat.costs().answers == 0
    chat.complete(TALKS, max_tokens=MAX_TOKENS)
    assert chat.costs().answers == len(TALKS)
    assert chat.name.strip()


def test_a_chat_serves_several_threads(chat: Chat) -> None:
    replies = chat.complete(TALKS, max_tokens=MAX_TOKENS)
    with ThreadPoolExecutor(6) as pool:
        parts = [TALKS[n::6] for n in range(6)]
        found = list(pool.map(lambda part: chat.complete(part, max_tokens=MAX_TOKENS), parts))
    assert found == [replies[n::6] for n in range(6)]
    assert chat.costs().answers == 2 * len(TALKS)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_engine(tiny_model(tmp_path_factory.mktemp("judge"), context=4096), dtype="float32", rows=8)


SCORERS: dict[str, Callable[[Any], AbstractContextManager[LabelScorer]]] = {
    "scripted": lambda _: nullcontext(ScriptedLabelScorer()),
    "scripted, failing": lambda _: nullcontext(ScriptedLabelScorer(failure_rate=0.5)),
    "engine": lambda engine: nullcontext(EngineLabelScorer(engine=engine, name="engine")),
    "endpoint": lambda _: label_endpoint(),
}


@pytest.fixture(params=SCORERS)
def scorer(request: pytest.FixtureRequest, engine: Any) -> Iterator[LabelScorer]:
    with SCORERS[request.param](engine) as made:
        yield made


def test_a_label_scorer_gives_each_label_an_interval_or_an_error(scorer: LabelScorer) -> None:
    talks = TALKS[:12]
    scored = scorer.score_labels(talks, LABELS)
    assert len(scored) == len(talks)
    for logps in scored:
        assert (logps.low is None) == (logps.high is None) == bool(logps.error)
        if logps.low is not None and logps.high is not None:
            assert len(logps.low) == len(logps.high) == len(LABELS)
            assert all(low <= high < math.inf for low, high in zip(logps.low, logps.high, strict=True))
    turned = scorer.score_labels(talks[::-1], LABELS)[::-1]
    assert [logps.low and pytest.approx(logps.low, abs=1e-4) for logps in scored] == [logps.low for logps in turned]
    assert [logps.error for logps in scored] == [logps.error for logps in turned]
    assert scorer.score_labels([], LABELS) == []
    assert scorer.costs().answers == 2 * len(talks)
    assert scorer.name.strip()


COMPARERS: dict[str, Callable[[Path], Comparer]] = {
    "scripted": lambda _: ScriptedComparer(),
    "scripted, failing": lambda _: ScriptedComparer(failure_rate=0.5),
    "by text": lambda _: LLMComparer(chat=ScriptedChat(failure_rate=0.3)),
    "by probability": lambda _: ProbabilityComparer(label_scorer=ScriptedLabelScorer(failure_rate=0.3), form="abc"),
    "in both orders": lambda _: ProbabilityComparer(label_scorer=ScriptedLabelScorer(failure_rate=0.3), both_orders=True),
    "cached": lambda folder: Cached(ScriptedComparer(failure_rate=0.3), folder, chunk=5),
}


@pytest.fixture(params=COMPARERS)
def comparer(request: pytest.FixtureRequest, tmp_path: Path) -> Comparer:
    return COMPARERS[request.param](tmp_path)


def test_a_comparer_gives_one_outcome_a_battle_in_order_whatever_the_company(comparer: Comparer) -> None:
    outcomes = comparer.compare(BATTLES)
    for outcome in outcomes:
        assert (outcome.value is None) == bool(outcome.error)
        assert outcome.value in (None, 1.0, 0.0, -1.0)
    assert comparer.compare(BATTLES[::-1]) == outcomes[::-1]
    assert [comparer.compare([battle])[0] for battle in BATTLES[:5]] == outcomes[:5]
    assert comparer.compare([*BATTLES[:2], *BATTLES[:2]]) == outcomes[:2] * 2
    assert comparer.compare([]) == []
    assert {1.0, -1.0} <= {outcome.value for outcome in outcomes}
    assert comparer.name.strip()


def test_a_comparer_serves_several_threads(comparer: Comparer) -> None:
    """They ask the same battles and others, so that a cache and a memory are written to and read at once."""
    outcomes = dict(zip(BATTLES, comparer.compare(BATTLES), strict=True))

    def ask(n: int) -> Sequence[Any]:
        return [comparer.compare(BATTLES[start : start + 9]) for start in range(n, len(BATTLES), 7)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert found == [[[outcomes[b] for b in BATTLES[s : s + 9]] for s in range(n, len(BATTLES), 7)] for n in range(8)]
