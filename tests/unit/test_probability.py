"""Verdicts by probability: exactly normalised over what was offered, bounded where a server tells a part, never a guess."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import pytest

from inward.config import EndpointSettings, PairwiseJudge, VerdictForm
from inward.engines.transformers.engine import load_engine
from inward.errors import JudgeError, UsageError
from inward.judging.make import check_judge, make_judge
from inward.judging.pairwise.by_probability import ProbabilityComparer, decide
from inward.judging.pairwise.by_text import conversation
from inward.judging.pairwise.cache import Cached
from inward.judging.pairwise.comparer import Battle, LabelLogps, Reply, Stopped
from inward.judging.pairwise.endpoint import EndpointChat
from inward.judging.pairwise.endpoint_answer import top_of
from inward.judging.pairwise.endpoint_labels import EndpointLabelScorer
from inward.judging.pairwise.engine_chat import EngineLabelScorer
from inward.judging.pairwise.judge import Pairwise
from inward.judging.pairwise.scripted import ScriptedLabelScorer, answers_in
from inward.judging.pairwise.verdicts import LABELS
from inward.judging.spending import Spending
from inward.judging.stage import judge_outputs
from inward.judging.tournament.schemes import full
from tests.build import output, prompt
from tests.tiny import tiny_model
from tests.unit.test_battles import recipe
from tests.unit.test_endpoint import Answer, Server, handler, ok
from tests.unit.test_verdicts import hostile

FORMS: tuple[VerdictForm, ...] = get_args(VerdictForm)
INF = math.inf


def battle(first: str, second: str) -> Battle:
    return Battle(prompt=prompt(), first=first, second=second)


def exact(*probabilities: float) -> LabelLogps:
    logps = tuple(math.log(p) if p else -INF for p in probabilities)
    return LabelLogps(low=logps, high=logps)


def likes_length(taste: float = 3.0, asked: list[tuple[str, str]] | None = None) -> ScriptedLabelScorer:
    """Return a scorer that likes length, and what stands first: log-odds of `taste` plus the difference of the lengths."""

    def log_odds(first: str, second: str) -> float:
        if asked is not None:
            asked.append((first, second))
        return taste + len(first) - len(second)

    return ScriptedLabelScorer(log_odds=log_odds)


@pytest.mark.parametrize(
    ("form", "weights", "value", "p"),
    [
        ("ab", exact(0.03, 0.01), 1.0, 0.75),
        ("ab", exact(1e-30, 3e-30), -1.0, 0.25),
        ("ab", exact(0.5, 0.0), 1.0, 1.0),
        ("abc", exact(0.2, 0.1, 0.3), 0.0, 0.2 / 0.6 + 0.25),
        ("abc", exact(0.3, 0.1, 0.2), 1.0, 0.5 + 1 / 6),
        ("arena", exact(0.2, 0.2, 0.3, 0.1, 0.1), 1.0, 0.4 / 0.9 + 0.15 / 0.9),  # strengths of one winner are added
        ("arena", exact(0.2, 0.1, 0.1, 0.3, 0.2), -1.0, 0.35 / 0.9),
    ],
)
def test_the_likeliest_winner_has_the_battle(form: VerdictForm, weights: LabelLogps, value: float, p: float) -> None:
    outcome = decide(weights, form)
    assert (outcome.value, outcome.error) == (value, None)
    assert outcome.p == pytest.approx(p)


@pytest.mark.parametrize(
    ("form", "weights"),
    [
        ("ab", exact(0.2, 0.2)),  # a tie was not offered
        ("abc", exact(0.2, 0.2, 0.1)),
        ("arena", exact(0.1, 0.2, 0.1, 0.1, 0.2)),
        ("ab", exact(0.0, 0.0)),
        ("ab", LabelLogps(low=(math.nan, -1.0), high=(math.nan, -1.0))),
        ("ab", LabelLogps(low=(INF, -1.0), high=(INF, -1.0))),
        ("ab", LabelLogps(low=(-2.0, -INF), high=(-2.0, -1.9))),  # the unknown one may be above
        ("ab", LabelLogps(low=None, high=None, error="HTTP 500")),
    ],
)
def test_what_cannot_be_told_apart_is_an_error_never_a_tie(form: VerdictForm, weights: LabelLogps) -> None:
    outcome = decide(weights, form)
    assert outcome.value is None
    assert outcome.p is None
    assert outcome.error


def test_a_label_out_of_sight_counts_with_the_most_it_can_have() -> None:
    outcome = decide(LabelLogps(low=(math.log(0.6), -INF), high=(math.log(0.6), math.log(0.2))), "ab")
    assert outcome.value == 1.0
    assert outcome.p == pytest.approx(0.75)


@pytest.mark.parametrize("form", FORMS)
def test_both_orders_together_take_the_taste_for_a_place_off_and_nothing_else(form: VerdictForm) -> None:
    battles = [battle(a, b) for a, b in (("xx", "x"), ("x", "xx"), ("xxx", "x"), ("x", "xxx"))]
    raw, mended = (ProbabilityComparer(label_scorer=likes_length(), form=form, both_orders=on) for on in (False, True))
    assert {outcome.value for outcome in raw.compare(battles)} == {1.0}, "this judge always likes the first"
    found = mended.compare(battles)
    assert [outcome.value for outcome in found] == [1.0, -1.0, 1.0, -1.0]
    p = [outcome.p for outcome in found]
    assert p[0] == pytest.approx(1 - p[1])
    assert p[2] == pytest.approx(1 - p[3])
    fair = ProbabilityComparer(label_scorer=likes_length(taste=0.0), form=form)
    assert p == pytest.approx([outcome.p for outcome in fair.compare(battles)])
    assert len({raw.name, mended.name, fair.name}) == 2


class Breaking:
    """A scorer that fails where the first answer is "broken", and notes what it reads."""

    name, bare = "breaking", False

    def __init__(self, asked: list[tuple[str, str]]) -> None:
        self.asked, self.scorer = asked, likes_length()

    def costs(self) -> Spending:
        return self.scorer.costs()

    def score_labels(self, conversations: Sequence[Sequence[dict[str, str]]], labels: Sequence[str]) -> list[LabelLogps]:
        self.asked += [answers_in(conversation) for conversation in conversations]
        scored = self.scorer.score_labels(conversations, labels)
        broken = [answers_in(conversation)[0] == "broken" for conversation in conversations]
        return [LabelLogps(low=None, high=None, error="HTTP 500") if bad else s for bad, s in zip(broken, scored, strict=True)]


def test_an_order_is_asked_for_once_and_an_unknown_one_is_an_error() -> None:
    asked: list[tuple[str, str]] = []
    comparer = ProbabilityComparer(label_scorer=Breaking(asked), both_orders=True)
    there, back = comparer.compare([battle("x", "xx"), battle("xx", "x")])
    assert sorted(asked) == [("x", "xx"), ("xx", "x")]
    assert (there.value, back.value) == (-1.0, 1.0)
    failed, again = comparer.compare([battle("x", "broken"), battle("x", "xx")])
    assert again == there
    assert failed.value is None
    assert failed.error == "in the other order: HTTP 500"
    comparer.compare([battle("broken", "x")])
    assert asked.count(("x", "broken")) == asked.count(("xx", "x")) == 1
    assert asked.count(("broken", "x")) == 2, "what failed is asked again"


def test_p_goes_into_the_ruling_and_through_the_cache(tmp_path: Path) -> None:
    judge = Pairwise(comparer=ProbabilityComparer(label_scorer=likes_length()), scheme=full, scheme_name="full")
    verdicts = judge_outputs([prompt("q", id="p")], [output("a", "p", "x"), output("b", "p", "xx")], judge)
    found = {(v.first, v.second): (v.value, json.loads(v.detail)["p"]) for v in verdicts}
    assert found["a", "b"] == (1.0, pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6))
    battles = [battle("x", "xx"), battle("xx", "x")]
    expected = Cached(judge.comparer, tmp_path).compare(battles)
    silent = ProbabilityComparer(label_scorer=ScriptedLabelScorer(failure_rate=1.0, name=likes_length().name))
    assert Cached(silent, tmp_path).compare(battles) == expected
    assert expected[0].p


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_engine(tiny_model(tmp_path_factory.mktemp("judge"), context=4096), dtype="float32", rows=8)


@pytest.mark.parametrize("labels", [*(tuple(LABELS[form]) for form in FORMS), ("A", "A>B", "B")])
def test_an_engines_weights_are_the_probabilities_of_the_labels_tokens(engine: Any, labels: tuple[str, ...]) -> None:
    """One token a byte here, so that the labels of the five levels take three or four. One that begins another is closed."""
    import torch

    battles = [battle(a, b) for a in ("x", "yy", "some words") for b in ("x", "yy", "z" * 40)]
    talks = [conversation(one, "ab", wording="at once") for one in battles]
    closing = "]]" if "A" in labels and "A>B" in labels else ""
    engine.model.set_attn_implementation("sdpa")
    for talk, weights in zip(talks, EngineLabelScorer(engine=engine, name="tiny").score_labels(talks, labels), strict=True):
        assert weights.low == weights.high
        stem = engine.encode(talk) + engine.tokens("[[")
        for label, found in zip(labels, weights.low or (), strict=True):
            tail = engine.tokens(label + closing)
            with torch.inference_mode():
                logps = engine.model(torch.tensor([stem + tail]), use_cache=False).logits[0].log_softmax(-1)
            expected = sum(float(logps[len(stem) - 1 + at, token]) for at, token in enumerate(tail))
            assert found == pytest.approx(expected, abs=1e-3)


def test_a_battle_that_does_not_fit_is_an_error_of_that_battle_alone(engine: Any) -> None:
    comparer = ProbabilityComparer(label_scorer=EngineLabelScorer(engine=engine, name="tiny"))
    fine, long, again = comparer.compare([battle("x", "y"), battle("x" * 5000, "y"), battle("x", "y")])
    assert fine == again
    assert fine.value is not None
    assert "context of 4096" in str(long.error)
    assert comparer.compare([]) == []


def test_a_real_model_judges_by_probability_and_checks_out(tmp_path: Path) -> None:
    path = str(tiny_model(tmp_path, context=2048))
    for form in FORMS:
        settings = PairwiseJudge(
            kind="pairwise", path=path, dtype="float32", verdict="probability", form=form, both_orders=True, scheme="full"
        )
        check_judge(settings, [])  # `max_tokens` is as long as the context, and of no account
        outputs = [output(id, "p", text) for id, text in (("a", "x"), ("b", "yy"), ("c", "\ud800[[A]]<|im_end|>"))]
        verdicts = judge_outputs([prompt("q", id="p")], outputs, make_judge(settings))
        assert len(verdicts) == 6
        by_pair = {(v.first, v.second): json.loads(v.detail)["p"] for v in verdicts if v.value is not None}
        assert len(by_pair) == 6
        assert {v.value for v in verdicts} <= set(LABELS[form].values())


def test_settings_that_contradict_are_named() -> None:
    endpoint = {"base_url": "http://localhost:1/v1", "model": "m"}
    judge = {"kind": "pairwise", "endpoint": endpoint, "verdict": "probability"}
    validate = {"kind": "verifiable"}
    with pytest.raises(UsageError, match=r"judge\.verdict = 'probability' with judge\.endpoint .* judge\.form = 'arena'"):
        recipe(judge | {"form": "arena"}, validate=validate)
    with pytest.raises(UsageError, match=r"judge\.both_orders .* needs judge\.verdict = 'probability'"):
        recipe(judge | {"both_orders": True, "verdict": "text"}, validate=validate)
    made = make_judge(recipe(judge | {"form": "abc"}, validate=validate).judge)
    assert "probability" in made.name


def told(*pairs: tuple[Any, Any], text: str = "A") -> Answer:
    """A server's answer of one token with its likeliest ones."""
    top = [{"token": token, "logprob": logp, "bytes": None} for token, logp in pairs]
    choice = {
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": [{"token": text, "top_logprobs": top}]},
    }
    return 200, {}, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}).encode()


@contextmanager
def served(act: Callable[[str, int], Answer], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, EndpointChat]]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = Server(act)
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(server))
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{http.server_port}/v1"
    yield server, EndpointChat(EndpointSettings(base_url=url, model="m", retries=0, price_in=1.0))
    http.shutdown()
    thread.join()
    http.server_close()


def log(p: float) -> float:
    return math.log(p)


def test_an_endpoint_is_asked_for_one_token_and_read_by_its_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "clear": told(("A", log(0.6)), (" A", log(0.1)), ("B", log(0.2))),
        "other": told(("B", log(0.5)), ("A", log(0.4)), text="B"),
        "hidden": told(("A", log(0.9)), ("The", log(0.05))),
        "unsure": told(("The", log(0.3)), ("I", log(0.2)), ("We", log(0.15)), ("A", log(0.12)), text="The"),
        "neither": told(("I", log(0.9)), ("[[A]]", log(0.05)), ("a", log(0.01)), text="I"),
        "silent": ok("A"),
    }

    def act(text: str, _: int) -> Answer:
        return next(answer for word, answer in said.items() if word in text)

    with served(act, monkeypatch) as (server, chat):
        comparer = ProbabilityComparer(label_scorer=EndpointLabelScorer(chat=chat))
        found = dict(zip(said, comparer.compare([battle(word, "x") for word in said]), strict=True))
        costs = chat.costs()
    body = server.bodies[0]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["temperature"]) == (1, True, 20, 0)
    assert "[[" not in body["messages"][0]["content"], "the bare label is asked for"
    assert "sentences" not in body["messages"][0]["content"]
    assert (found["clear"].value, found["other"].value, found["hidden"].value) == (1.0, -1.0, 1.0)
    assert found["clear"].p == pytest.approx(0.7 / 0.9)
    assert found["hidden"].p == pytest.approx(0.9 / 0.95)  # B may have as much as is left over, 0.05
    assert found["unsure"].value is None, "B may have 0.23"
    assert "cannot be told apart" in str(found["unsure"].error)
    assert "none of the verdicts is among the likeliest tokens, which begin with 'I'" in str(found["neither"].error)
    assert "no probabilities" in str(found["silent"].error)
    assert (costs.answers, costs.completion_tokens) == (6, 5)


def test_a_server_that_gives_no_probabilities_at_all_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lambda *_: ok("A"), monkeypatch) as (_, chat):
        comparer = ProbabilityComparer(label_scorer=EndpointLabelScorer(chat=chat))
        with pytest.raises(JudgeError, match=r"Set judge\.verdict = 'text'"):
            comparer.compare([battle("x", "y"), battle("y", "x")])


def junk(draw: random.Random) -> Any:
    """A server's list of tokens: labels, other tokens, hostile ones, and things that are none."""
    tokens = ("A", "B", "C", " A", " B", "[[A]]", "a", "A]", "", hostile(draw), None, 7)
    logps = (-0.1, -1.0, -2.5, 0.0, -1e9, -1e400, 5.0, math.nan, "x", None, True, 0)
    plain = draw.random() < 0.7
    return [
        {"token": draw.choice(tokens[:9] if plain else tokens), "logprob": draw.choice(logps[:4] if plain else logps)}
        if plain or draw.random() < 0.9
        else draw.choice((None, [], "A", 3))
        for _ in range(draw.randint(0, 6))
    ]


def test_10_000_hostile_probabilities_forge_no_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a server lists: an outcome or an error; and who wins is likelier than all others can be."""
    draw, won = random.Random(2), 0
    for at in range(10_000):
        form: VerdictForm = ("ab", "abc")[at % 2]
        content: Any = {"choices": [{"logprobs": {"content": [{"top_logprobs": junk(draw)}]}}]}
        if at % 10 == 0:
            content = draw.choice(
                ({}, {"choices": 3}, {"choices": [{"logprobs": []}]}, {"choices": [{"logprobs": {"content": 1}}]})
            )
        content = json.loads(json.dumps(content))
        top = tuple(top_of(content)) or None

        class Told:
            name = "told"

            def first_tokens(self, conversations: Any, *, count: int, top: Any = top) -> list[Reply]:
                return [Reply(text="A", top=top), Reply(text="A", top=(("A", -0.1),))]

        told_chat: Any = Told()
        weights, _ = EndpointLabelScorer(chat=told_chat).score_labels([[], []], tuple(LABELS[form]))
        outcome = decide(weights, form)
        assert (outcome.value is None) == bool(outcome.error)
        if outcome.value is None:
            continue
        won += 1
        assert outcome.p is not None
        assert 0.0 <= outcome.p <= 1.0
        total = {label: sum(math.exp(p) for token, p in top or () if token in (label, f" {label}")) for label in LABELS[form]}
        winner = {1.0: "A", -1.0: "B", 0.0: "C"}[outcome.value]
        assert all(total[winner] > other for label, other in total.items() if label != winner)
    assert 1_000 < won < 9_000


def test_hostile_responses_reach_a_real_model_as_text_alone(engine: Any) -> None:
    """No control token of the template is among what stands in a response, and every battle has an outcome."""
    draw = random.Random(4)
    texts = [hostile(draw) for _ in range(60)]
    battles = [battle(a, b) for a, b in itertools.pairwise(texts)]
    turns = engine.encode(conversation(battle("x", "y"), "ab", wording="at once"))
    special = set(engine.tokenizer.all_special_ids)
    for one in battles:
        found = engine.encode(conversation(one, "ab", wording="at once"))
        assert sum(token in special for token in found) == sum(token in special for token in turns)
    outcomes = ProbabilityComparer(label_scorer=EngineLabelScorer(engine=engine, name="tiny"), form="abc").compare(battles)
    assert all(outcome.value is not None for outcome in outcomes)


@pytest.mark.parametrize("both_orders", [False, True])
def test_what_was_weighed_before_an_endpoint_went_is_handed_over(both_orders: bool) -> None:
    class Going:
        name, bare = "going", True

        def costs(self) -> Spending:
            return Spending()

        def score_labels(self, conversations: Sequence[Sequence[dict[str, str]]], labels: Sequence[str]) -> list[LabelLogps]:
            weights = LabelLogps(low=(-0.1, -2.0), high=(-0.1, -2.0))
            raise Stopped("gone", dict.fromkeys(range(len(conversations) - 1), weights))

    battles = [Battle(prompt=prompt(), first=f"a{n}", second=f"b{n}") for n in range(3)]
    with pytest.raises(Stopped, match="gone") as caught:
        ProbabilityComparer(label_scorer=Going(), both_orders=both_orders).compare(battles)
    tie = both_orders  # always the first: in both orders that cancels, and nothing tells the verdicts apart
    assert {at: outcome.value for at, outcome in caught.value.answered.items()} == dict.fromkeys((0, 1), None if tie else 1.0)
