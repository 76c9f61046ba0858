"""Judges made of judges: who rules on what, and what is left unscored."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inward.config import parse_recipe
from inward.errors import UsageError
from inward.judging.combined.cascade import Cascade
from inward.judging.combined.panel import DISAGREES, Panel
from inward.judging.combined.part import Part, scores_of
from inward.judging.combined.routed import Routed
from inward.judging.judge import Group, Judge, Ruling
from inward.judging.make import check_judge, make_judge
from inward.judging.pairwise.by_text import LLMComparer
from inward.judging.pairwise.judge import Pairwise
from inward.judging.pairwise.scripted import ScriptedChat
from inward.judging.scripted import Scripted
from inward.judging.stage import judge_outputs, rulers, score_outputs
from inward.judging.tournament.schemes import full
from inward.records import Constraint, Prompt
from inward.statistics import normalise
from tests.build import output, prompt
from tests.tiny import tiny_model
from tests.tiny_reward import tiny_reward_model

VERIFIABLE = {"kind": "verifiable"}
LOOSE = {"kind": "verifiable", "strictness": "loose"}


def part(key: str, judge: Judge, prior: float | None = None) -> Part:
    return Part(key=key, judge=judge, prior=prior)


def numbers(*, name: str = "numbers", sign: float = 1.0, fails: Callable[[str], bool] = lambda _: False) -> Judge:
    """Score = the number that a response is, times `sign`."""

    class Numbers(Scripted):
        def _rule(self, prompt: str, first: int, response: str) -> Ruling:
            failed = fails(response)
            return Ruling(
                first=first, value=None if failed else sign * float(response), unscored=f"{name} failed" if failed else None
            )

    return Numbers(score=lambda *_: 0.0, name=name)


def fighting(chat: ScriptedChat | None = None) -> Pairwise:
    return Pairwise(comparer=LLMComparer(chat=chat or ScriptedChat()), scheme=full, scheme_name="full")


def group(*responses: str, id: str = "p", source: str = "test", **lengths: Any) -> Group:
    return Group(prompt=Prompt(id=id, text=f"text of {id}", source=source), responses=responses, **lengths)


def ruled_by(rulings: list[Ruling]) -> set[str]:
    return {json.loads(ruling.detail)["ruled_by"]["part"] for ruling in rulings}


@pytest.mark.parametrize(
    ("responses", "who"),
    [
        (("0", "4", "5", "9"), "first"),  # leads of 4 / 3.2 deviations at both ends
        (("0", "8", "8.9", "9"), "then"),  # the best leads by next to nothing
        (("0", "0.1", "5", "9"), "then"),  # the worst does
        (("3", "3.0", "3.00"), "then"),  # no spread
        (("1", "9"), "then"),  # of two, each is always one deviation from the mean
        (("1",), "first"),  # nothing to be unsure of
        (("0", "4", "5", "9", "-1"), "then"),  # one is unscored: it may be the best
    ],
)
def test_a_cascade_hands_on_the_groups_of_which_the_cheap_judge_is_unsure(responses: tuple[str, ...], who: str) -> None:
    cheap = numbers(fails=lambda text: text.startswith("-"))
    dear = Scripted(score=lambda _, response: -1.0, name="dear")
    judge = Cascade(first=part("first", cheap), then=part("then", dear), sure=0.5)
    (rulings,) = judge.judge([group(*responses)])
    assert ruled_by(rulings) == {who}, "all rulings of a group are of one judge"
    if who == "then":
        assert {ruling.value for ruling in rulings} == {-1.0}
    assert json.loads(rulings[0].detail)["ruled_by"]["judge"] == (dear.name if who == "then" else cheap.name)


def test_a_cascade_is_unsure_by_the_score_that_pairing_goes_by() -> None:
    """The best by score is the longest: with length control two are level at the top."""
    four = group("0", "3", "8", "9", lengths=(1.0, 1.0, 1.0, 1.2))
    dear = Scripted(score=lambda *_: 0.0, name="dear")
    for rho, who in ((0.0, "first"), (0.13, "then")):
        judge = Cascade(first=part("first", numbers()), then=part("then", dear), sure=0.2, rho=rho)
        assert ruled_by(judge.judge([four])[0]) == {who}


def test_a_cascade_counts_copies_as_pairing_does() -> None:
    """Nine copies of the short worst response make the spread of the scores larger and every lead smaller."""
    dear = Scripted(score=lambda *_: 0.0, name="dear")
    judge = Cascade(first=part("first", numbers()), then=part("then", dear), sure=0.1, rho=0.5)
    leads = [
        json.loads(judge.judge([group("0", "40", "50", "90", copies=copies)])[0][0].detail)["leads"]
        for copies in (None, (1, 1, 1, 1), (9, 1, 1, 1))
    ]
    assert leads[0] == leads[1]
    everyone = group(*["0"] * 9, "40", "50", "90")
    written_out = json.loads(judge.judge([everyone])[0][0].detail)["leads"]
    assert leads[2][0] == pytest.approx(written_out[0])
    assert leads[2] != leads[0]


def test_the_default_hands_on_two_in_five() -> None:
    draw = random.Random(0)
    groups = [group(*(repr(draw.gauss(0, 1)) for _ in range(8)), id=str(n)) for n in range(500)]
    sure = parse({"kind": "cascade", "first": VERIFIABLE, "then": LOOSE}).judge.sure
    judge = Cascade(first=part("first", numbers()), then=part("then", numbers(name="dear")), sure=sure)
    went = sum(ruled_by(rulings) == {"then"} for rulings in judge.judge(groups))
    assert 0.33 < went / 500 < 0.47


def test_the_dear_judge_is_asked_once_for_all_and_of_nothing_else() -> None:
    asked: list[tuple[str, str]] = []

    def script(first: str, second: str) -> str:
        asked.append((first, second))
        return "[[A]]" if float(first) > float(second) else "[[B]]"

    judge = Cascade(first=part("first", numbers()), then=part("then", fighting(ScriptedChat(script=script)), 0.4), sure=0.5)
    groups = [group("0", "4", "5", "9"), group("1", "2", id="q"), group("7", "8", id="r")]
    rulings = judge.judge(groups)
    assert {text for battle in asked for text in battle} == {"1", "2", "7", "8"}
    assert [ruling.second is None for own in rulings for ruling in own] == [True] * 4 + [False] * 4
    assert json.loads(rulings[1][0].detail)["raw"], "what the ruling judge said stays"
    assert judge.costs().answers == len(asked) == 4


def test_a_cheap_pairwise_judge_is_unsure_by_its_strengths() -> None:
    by_number = ScriptedChat(script=lambda a, b: "[[A]]" if float(a) > float(b) else "[[B]]")
    dear = Scripted(score=lambda *_: 0.0, name="dear")
    judge = Cascade(first=part("first", fighting(by_number), 0.4), then=part("then", dear), sure=0.2)
    always_a = ScriptedChat(script=lambda *_: "[[A]]")
    assert ruled_by(judge.judge([group("1", "2", "3", "4")])[0]) == {"first"}
    judge = Cascade(first=part("first", fighting(always_a), 0.4), then=part("then", dear), sure=0.2)
    assert ruled_by(judge.judge([group("1", "2", "3", "4")])[0]) == {"then"}


def test_what_the_dear_judge_leaves_unscored_stays_unscored() -> None:
    dear = Scripted(score=lambda *_: 0.0, failure_rate=1.0, name="dear")
    judge = Cascade(first=part("first", numbers()), then=part("then", dear), sure=9.0)
    assert {(r.value, r.unscored) for r in judge.judge([group("1", "2", "5")])[0]} == {(None, "scripted failure")}


def test_a_panel_averages_what_each_member_normalised() -> None:
    other = {"1": 10.0, "2": 40.0, "4": 20.0}
    second = Scripted(score=lambda _, response: other[response], name="other")
    judge = Panel(members=(part("members.0", numbers()), part("members.1", second)))
    rulings = judge.judge([group(*other)])[0]
    votes = zip(normalise([1.0, 2.0, 4.0]), normalise(list(other.values())), strict=True)
    assert [ruling.value for ruling in rulings] == pytest.approx([(a + b) / 2 for a, b in votes])
    said = json.loads(rulings[1].detail)["members"]
    assert [(member["judge"], member["score"]) for member in said] == [("numbers", 2.0), ("other", 40.0)]


def test_one_member_twice_as_loud_changes_nothing() -> None:
    loud = Scripted(score=lambda _, response: 1000 * float(response) + 7, name="loud")
    values = [
        [r.value for r in Panel(members=(part("members.0", numbers()), part("members.1", m))).judge([group("1", "2", "5")])[0]]
        for m in (loud, numbers(name="same"))
    ]
    assert values[0] == pytest.approx(values[1])


def test_what_one_member_leaves_unscored_is_unscored_and_moves_no_other() -> None:
    picky = numbers(name="picky", fails=lambda text: text == "100")
    judge = Panel(members=(part("members.0", numbers()), part("members.1", picky)))
    *rest, last = judge.judge([group("1", "2", "4", "100")])[0]
    assert (last.value, last.unscored) == (None, "members.1: picky failed")
    assert [ruling.value for ruling in rest] == pytest.approx(normalise([1.0, 2.0, 4.0]))


def test_a_panel_that_must_agree_and_does_not_scores_nothing() -> None:
    same, turned = (
        Panel(members=(part("members.0", numbers()), part("members.1", numbers(name="b", sign=sign))), rule="agree")
        for sign in (2.0, -1.0)
    )
    assert None not in [ruling.value for ruling in same.judge([group("1", "2", "4")])[0]]
    assert [ruling.value for ruling in turned.judge([group("1", "2", "4")])[0]] == [0.0] * 3, "the votes cancel to the last bit"
    half = Scripted(score=lambda _, response: {"1": 0.0, "2": 5.0, "4": 0.0}[response], name="half")
    torn = Panel(members=(part("members.0", numbers()), part("members.1", half)), rule="agree")
    assert {r.unscored for r in torn.judge([group("1", "2", "4")])[0]} == {None}, "2 is above 1 for both"
    flat = Scripted(score=lambda *_: 1.0, name="flat")
    divided = Panel(members=(part("members.0", numbers()), part("members.1", flat)), rule="agree")
    rulings = divided.judge([group("1", "2", "4")])[0]
    assert {(ruling.value, ruling.unscored) for ruling in rulings} == {(None, DISAGREES)}
    assert json.loads(rulings[0].detail)["members"][0]["score"] == 1.0, "what they said is kept"


def test_a_panel_keeps_the_battles_of_its_members() -> None:
    judge = Panel(members=(part("members.0", fighting(), 0.4), part("members.1", numbers())))
    rulings = judge.judge([group("1", "22", "22")])[0]
    assert rulings[1].value == rulings[2].value
    battles = json.loads(rulings[0].detail)["members"][0]["rulings"]
    assert [(battle["against"], battle["value"]) for battle in battles] == [(1, -1.0)]
    assert battles[0]["detail"]["raw"]


def test_routes_send_each_prompt_to_one_judge_and_each_judge_is_asked_once() -> None:
    one, two = numbers(name="one"), numbers(name="two", sign=-1.0)
    judge = Routed(
        parts=(part("routes.0.judge", one), part("otherwise", two)),
        route=lambda prompt: "routes.0.judge" if prompt.source == "a" else "otherwise",
        rules="source=a",
    )
    rulings = judge.judge([group("1", id="p", source="b"), group("2", id="q", source="a"), group("3", id="r", source="b")])
    assert [own[0].value for own in rulings] == [-1.0, 2.0, -3.0]
    assert [ruled_by(own) for own in rulings] == [{"otherwise"}, {"routes.0.judge"}, {"otherwise"}]


def test_scores_of_battles_equal_those_of_the_stage() -> None:
    """A cheap judge inside a cascade must be as sure as it would be alone."""
    outputs = [output(str(n), "p", "x" * n) for n in range(1, 6)]
    judge = fighting(ScriptedChat(failure_rate=0.4))
    texts = tuple(sorted(o.response or "" for o in outputs))
    own = Group(prompt=prompt("first", id="p"), responses=texts)
    here = dict(zip(texts, scores_of([own], judge.judge([own]), 0.3)[0], strict=True))
    stage = score_outputs(outputs, judge_outputs([own.prompt], outputs, judge), prior=0.3)
    for made, found in zip(outputs, stage, strict=True):
        assert here[made.response or ""][0] == pytest.approx(found.value)


def test_prompts_are_counted_by_the_judge_that_ruled() -> None:
    judge = Cascade(first=part("first", numbers()), then=part("then", numbers(name="dear")), sure=0.5)
    outputs = [output(f"p{n}", "p", text) for n, text in enumerate(("0", "4", "5", "9"))]
    outputs += [output(f"q{n}", "q", text) for n, text in enumerate(("1", "1", "2"))]
    verdicts = judge_outputs([prompt("a", id="p"), prompt("b", id="q")], outputs, judge)
    assert rulers(verdicts) == {"prompts_by_judge": {"first": 1, "then": 1}}
    torn = Panel(members=(part("members.0", numbers()), part("members.1", Scripted(score=lambda *_: 1.0))), rule="agree")
    verdicts = judge_outputs([prompt("a", id="p"), prompt("b", id="q")], outputs, torn)
    assert rulers(verdicts) == {"panel": {"prompts_disagreed_on": 2}}


def parse(judge: dict[str, Any], validate: dict[str, Any] | None = VERIFIABLE, **more: Any) -> Any:
    tree = {"model": {"path": "smollm2"}, "prompts": {"sources": [{"kind": "tasks", "count": 8}]}, "judge": judge}
    return parse_recipe(tree | {"validation": {"judge": validate} if validate else {}} | more)


PAIRWISE = {"kind": "pairwise", "path": "smollm2"}
REWARD = {"kind": "reward_model", "path": "r"}
CASCADE = {"kind": "cascade", "first": REWARD, "then": PAIRWISE}
PANEL = {"kind": "panel", "members": [REWARD, PAIRWISE]}
ROUTED = {"kind": "routed", "routes": [{"verifiable": True, "judge": VERIFIABLE}], "otherwise": PAIRWISE}


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (CASCADE | {"then": PANEL}, ("judge.then.kind = 'panel'", "judge.kind = 'cascade'")),
        (PANEL | {"members": [REWARD, ROUTED]}, ("judge.members.1.kind = 'routed'", "judge.kind = 'panel'")),
        (ROUTED | {"otherwise": CASCADE}, ("judge.otherwise.kind = 'cascade'", "judge.kind = 'routed'")),
        (CASCADE | {"then": REWARD}, ("judge.first", "judge.then", "same")),
        (PANEL | {"members": [REWARD, PAIRWISE, REWARD]}, ("judge.members.0", "judge.members.2", "same")),
        (PANEL | {"members": [REWARD]}, ("members", "at least 2")),
        (CASCADE | {"first": PAIRWISE | {"prior": 1.0}}, ("judge.first.prior = 1", "judge.then.prior = 0.4")),
        (ROUTED | {"routes": [{"judge": VERIFIABLE}]}, ("judge.routes", "source", "verifiable")),
        (ROUTED | {"routes": [{"source": "a", "verifiable": True, "judge": VERIFIABLE}]}, ("source", "verifiable")),
        (ROUTED | {"routes": [{"source": "a", "judge": REWARD}] * 2}, ("judge.routes.0", "judge.routes.1", "same prompts")),
        (ROUTED | {"routes": [{"sorce": "a", "judge": REWARD}]}, ("sorce", "'source'")),
    ],
)
def test_contradictions_name_both_keys(judge: dict[str, Any], said: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(judge)
    assert all(text in str(caught.value) for text in said), caught.value


@pytest.mark.parametrize("judge", [CASCADE, ROUTED])
def test_a_gap_of_scores_needs_one_scale(judge: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"pairing\.min_gap.*judge\.kind"):
        parse(judge, pairing={"min_gap": 0.1})
    parse(PANEL, pairing={"min_gap": 0.1})


@pytest.mark.parametrize(
    ("judge", "why"), [(CASCADE, "depends on the responses"), (PANEL, "normalised within"), (ROUTED, "different scales")]
)
def test_models_are_compared_on_one_scale(judge: dict[str, Any], why: str) -> None:
    for tree in ((judge, None), (VERIFIABLE, judge)):
        with pytest.raises(UsageError, match=why) as caught:
            parse(*tree)
        assert "validation.judge" in str(caught.value)
    assert parse(judge).validation_judge.kind == "verifiable"
    both = {"kind": "routed", "routes": [{"source": "tasks", "judge": LOOSE}], "otherwise": VERIFIABLE}
    assert parse(both, None).validation_judge.kind == "routed"
    shares = ROUTED | {"otherwise": REWARD | {"output": "sigmoid"}}
    assert parse(shares, None).validation_judge.lowest_score == 0.0


def test_what_a_stage_asks_of_settings() -> None:
    cascade, panel, routed = (parse(judge).judge for judge in (CASCADE, PANEL, ROUTED))
    assert [judge.holds_model for judge in (cascade, panel, routed)] == [True] * 3
    assert [judge.lowest_score for judge in (cascade, panel, routed)] == [None] * 3
    assert [judge.battle_prior for judge in (cascade, panel, routed)] == [0.4, None, 0.4]
    remote = {"kind": "pairwise", "endpoint": {"base_url": "http://localhost:1/v1", "model": "m"}, "prior": 0.2}
    assert not parse(ROUTED | {"otherwise": remote}).judge.holds_model
    both = {"kind": "routed", "routes": [{"source": "tasks", "judge": LOOSE}], "otherwise": VERIFIABLE}
    assert (parse(both).judge.lowest_score, parse(both).judge.battle_prior) == (0.0, None)


def test_routes_are_checked_on_the_prompts_before_anything_runs() -> None:
    constraint = (Constraint(id="punctuation:no_comma"),)
    prompts = [
        Prompt(id="a", text="a", source="tasks", constraints=constraint),
        Prompt(id="b", text="b", source="talk.jsonl"),
        Prompt(id="c", text="c", source="talk.jsonl", answers=("4",)),
    ]
    rules = [{"verifiable": True, "judge": VERIFIABLE}]
    with pytest.raises(UsageError, match=r"1 of 3 prompts.*'talk\.jsonl'.*judge\.otherwise"):
        check_judge(parse({"kind": "routed", "routes": rules}).judge, prompts)
    check_judge(parse({"kind": "routed", "routes": rules}).judge, [prompts[0], prompts[2]])
    wrong = [{"source": "talk", "judge": LOOSE}]
    with pytest.raises(UsageError, match=r"routes\.0\.source = 'talk' is the source of no prompt.*'talk\.jsonl', 'tasks'"):
        check_judge(parse({"kind": "routed", "routes": wrong, "otherwise": VERIFIABLE}).judge, prompts)
    missing = {"kind": "reward_model", "path": "./not/there"}
    for judge, key in (
        ({"kind": "cascade", "first": VERIFIABLE, "then": missing}, "judge.then: "),
        ({"kind": "panel", "members": [VERIFIABLE, missing]}, "judge.members.1: "),
        ({"kind": "routed", "routes": rules, "otherwise": missing}, "judge.otherwise: "),
    ):
        with pytest.raises(UsageError, match="cannot be loaded") as caught:
            check_judge(parse(judge).judge, prompts)
        assert str(caught.value).startswith(key)


def test_a_recipe_makes_real_judges_of_judges(tmp_path: Path) -> None:
    reward = {"kind": "reward_model", "path": str(tiny_reward_model(tmp_path / "reward")), "dtype": "float32"}
    model = str(tiny_model(tmp_path / "judge", context=4096))
    fights = {"kind": "pairwise", "path": model, "dtype": "float32", "max_tokens": 8}
    outputs = [output(str(n), "p", "x" * n) for n in range(1, 5)]
    prompts = [prompt("first", id="p")]
    for tree in (
        {"kind": "cascade", "first": reward, "then": fights, "sure": 9.0},
        {"kind": "panel", "members": [reward, fights]},
        {"kind": "routed", "routes": [{"source": "test", "judge": fights}], "otherwise": reward},
    ):
        settings = parse(tree).judge
        check_judge(settings, prompts)
        judge = make_judge(settings, rho=0.1)
        verdicts = judge_outputs(prompts, outputs, judge)
        scores = score_outputs(outputs, verdicts, prior=settings.battle_prior)
        assert all((score.value is None) == bool(score.unscored) for score in scores)
        assert {verdict.judge for verdict in verdicts} == {judge.name}
        assert judge.costs().prompt_tokens > 0
    twice = {"kind": "routed", "routes": [{"source": "test", "judge": reward}], "otherwise": reward}
    judge = make_judge(parse(twice).judge)
    assert isinstance(judge, Routed)
    assert judge.parts[0].judge is judge.parts[1].judge, "no model is held twice"


def test_an_audit_of_routes_says_what_to_audit_instead() -> None:
    from inward.stages.audit import audited

    with pytest.raises(UsageError, match=r"judge\.kind = 'routed'.*judge of one route"):
        audited(parse(ROUTED).judge)
    assert audited(parse(PANEL).judge) == parse(PANEL).judge
