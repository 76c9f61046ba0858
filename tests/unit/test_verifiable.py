from __future__ import annotations

import json
from dataclasses import replace

import pytest

from inward.config import VerifiableJudge
from inward.judging.judge import Group, Ruling
from inward.judging.verifiable import checkers, expressions
from inward.judging.verifiable.ifeval import Tally, ifeval_by_prompt
from inward.judging.verifiable.judge import Verifiable, check
from inward.records import Constraint, Prompt, Verdict

QUOTED = Constraint(id="startend:quotation")
NO_COMMA = Constraint(id="punctuation:no_comma")
SETTINGS = VerifiableJudge(kind="verifiable")
UNKNOWN = Constraint(id="no:such_checker")
CAPITALS = Constraint(
    id="change_case:capital_word_frequency", arguments='{"capital_frequency": 1, "capital_relation": "at least"}'
)


def prompt(*constraints: Constraint, answers: tuple[str, ...] = ()) -> Prompt:
    return Prompt(id="p", text="Say it.", source="test", constraints=constraints, answers=answers)


def rule(task: Prompt, *responses: str, strictness: str = "strict", require: str = "share") -> list[Ruling]:
    settings = VerifiableJudge.model_validate({"kind": "verifiable", "strictness": strictness, "require": require})
    (rulings,) = Verifiable(settings).judge([Group(prompt=task, responses=responses)])
    return rulings


@pytest.fixture
def _checkers() -> None:
    pytest.importorskip("if_verifiable", reason="needs the verifiable extra")


@pytest.mark.usefixtures("_checkers")
def test_the_value_is_the_share_of_constraints_met() -> None:
    rulings = rule(prompt(QUOTED, NO_COMMA), '"so"', '"so, so"', "so, so", "so")
    assert [ruling.value for ruling in rulings] == [1.0, 0.5, 0.0, 0.5]
    assert [ruling.first for ruling in rulings] == [0, 1, 2, 3]
    assert json.loads(rulings[1].detail)["constraints"] == [
        {"id": "startend:quotation", "loose": True, "strict": True},
        {"id": "punctuation:no_comma", "loose": False, "strict": False},
    ]


@pytest.mark.usefixtures("_checkers")
@pytest.mark.parametrize(("strictness", "value"), [("strict", 0.0), ("loose", 1.0), ("mean", 0.5)])
def test_strictness(strictness: str, value: float) -> None:
    (ruling,) = rule(prompt(QUOTED), 'Sure:\n"so"', strictness=strictness)
    assert ruling.value == value


@pytest.mark.usefixtures("_checkers")
def test_what_was_not_evaluated_is_left_out_of_the_share() -> None:
    (ruling,) = rule(prompt(NO_COMMA, UNKNOWN), "so")
    assert ruling.value == 1.0
    assert "no:such_checker" in json.loads(ruling.detail)["constraints"][1]["unevaluated"]


@pytest.mark.usefixtures("_checkers")
def test_nothing_evaluated_is_unscored_with_the_reason() -> None:
    (ruling,) = rule(prompt(UNKNOWN), "so")
    assert ruling.value is None
    assert ruling.unscored is not None
    assert "no:such_checker" in ruling.unscored


def test_nothing_to_check_is_unscored() -> None:
    (ruling,) = rule(prompt(), "so")
    assert (ruling.value, ruling.unscored) == (None, "the prompt has neither constraints nor answers")


def test_an_exact_answer_is_one_or_zero() -> None:
    rulings = rule(prompt(answers=("18",)), "It is 18.", "It is 17.", "Who knows")
    assert [ruling.value for ruling in rulings] == [1.0, 0.0, 0.0]
    assert json.loads(rulings[1].detail)["answer"] == {"extracted": "17", "correct": False}


@pytest.mark.usefixtures("_checkers")
def test_an_answer_counts_as_one_more_constraint() -> None:
    (ruling,) = rule(prompt(NO_COMMA, answers=("18",)), "so, 18")
    assert ruling.value == 0.5


@pytest.mark.usefixtures("_checkers")
@pytest.mark.parametrize(("strictness", "values"), [("strict", [0, 0, 1]), ("loose", [1, 0, 1]), ("mean", [0.5, 0, 1])])
def test_all_demands_may_be_required(strictness: str, values: list[float]) -> None:
    task = prompt(QUOTED, NO_COMMA, answers=("18",))
    rulings = rule(task, 'Sure:\n"18"', '"18, sir"', '"18"', strictness=strictness, require="all")
    assert [ruling.value for ruling in rulings] == values


@pytest.mark.usefixtures("_checkers")
def test_a_response_gains_nothing_by_making_a_check_impossible() -> None:
    """What a response makes impossible to check counts as failed, and the detail says why."""
    plain, too_heavy, undecided = rule(prompt(CAPITALS, NO_COMMA), "so, so", "so so" + "*" * 1001, "A.'.b so, so")
    assert (plain.value, too_heavy.value, undecided.value) == (0.0, 0.0, 0.0)
    entries = [json.loads(ruling.detail)["constraints"] for ruling in (too_heavy, undecided)]
    assert all("asterisks" in entry["failed"] for entry in entries[0])
    assert "capitals is not known" in entries[1][0]["failed"]
    assert (entries[1][0]["strict"], entries[1][0]["loose"]) == (False, False)


@pytest.mark.usefixtures("_checkers")
def test_a_constraint_is_dropped_for_all_responses_or_for_none() -> None:
    """The second keyword is no regular expression, whatever the responses hold of the first."""
    broken = Constraint(id="keywords:existence", arguments='{"keywords": ["river", "(unclosed"]}')
    for responses in (("a river", "a stone", "", "a, stone"), ("a stone", "a stone", "", "a, river")):
        rulings = rule(prompt(broken, NO_COMMA), *responses)
        assert [ruling.value for ruling in rulings] == [1.0, 1.0, 0.0, 0.0]
        assert all("unevaluated" in json.loads(ruling.detail)["constraints"][0] for ruling in rulings)


@pytest.mark.usefixtures("_checkers")
@pytest.mark.parametrize("require", ["share", "all"])
def test_rulings_do_not_depend_on_the_order_of_the_responses(require: str) -> None:
    responses = ['"so"', "A.'.b, so", "", "*" * 2000, "so, so", "A BIG so"]
    task = prompt(QUOTED, CAPITALS, NO_COMMA, UNKNOWN, answers=("so",))
    forward = rule(task, *responses, require=require)
    backward = rule(task, *reversed(responses), require=require)
    assert [(r.value, r.detail) for r in forward] == [(r.value, r.detail) for r in reversed(backward)]


def test_the_name_tells_the_settings() -> None:
    assert Verifiable(VerifiableJudge(kind="verifiable", strictness="loose")).name == "verifiable:loose"
    assert Verifiable(VerifiableJudge(kind="verifiable", require="all")).name == "verifiable:strict:all"


def test_packages_are_asked_for_only_where_a_demand_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[str] = []
    monkeypatch.setattr(checkers, "require_packages", lambda: needed.append("checkers"))
    monkeypatch.setattr(expressions, "require_packages", lambda: needed.append("expressions"))
    check(SETTINGS, [prompt(answers=("18",)), prompt(answers=("A",)), prompt()])
    assert needed == []
    check(SETTINGS, [prompt(NO_COMMA), prompt(answers=("18", r"2\sqrt{3}"))])
    assert needed == ["checkers", "expressions"]


def verdict(prompt_id: str, *entries: tuple[bool, bool] | None) -> Verdict:
    detail = [{"id": "x", "unevaluated": "?"} if e is None else {"id": "x", "strict": e[0], "loose": e[1]} for e in entries]
    return Verdict(
        id=f"{prompt_id}{len(detail)}{entries}",
        prompt_id=prompt_id,
        judge="verifiable:strict",
        first="o",
        second=None,
        value=0.0,
        unscored=None,
        detail=json.dumps({"constraints": detail}),
    )


def test_tallies_by_prompt_add_up_over_responses() -> None:
    met, lax, missed = (True, True), (False, True), (False, False)
    tallies = ifeval_by_prompt(
        [verdict("a", met, met), verdict("a", lax, met), verdict("b", None), verdict("c", missed, None), verdict("d")]
    )
    assert tallies == {
        "a": Tally(
            responses=2, responses_strict=1, responses_loose=2, instructions=4, instructions_strict=3, instructions_loose=4
        ),
        "b": Tally(unevaluated=1),
        "c": Tally(instructions=1, unevaluated=1),
    }


@pytest.mark.usefixtures("_checkers")
def test_tallies_count_as_failed_what_a_response_made_impossible_to_check() -> None:
    task = prompt(NO_COMMA, UNKNOWN)
    rulings = rule(task, "so", "*" * 2000)
    verdicts = [replace(verdict("p"), id=str(n), value=ruling.value, detail=ruling.detail) for n, ruling in enumerate(rulings)]
    assert ifeval_by_prompt(verdicts) == {
        "p": Tally(instructions=2, instructions_strict=1, instructions_loose=1, unevaluated=2)
    }
