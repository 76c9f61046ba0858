from __future__ import annotations

import json

import pytest

from inward.config import VerifiableJudge
from inward.judging.judge import Group, Ruling
from inward.judging.verifiable.ifeval import Tally, ifeval_by_prompt, ifeval_figures, ifeval_metrics
from inward.judging.verifiable.judge import Verifiable
from inward.records import Constraint, Prompt, Verdict

QUOTED = Constraint(id="startend:quotation")
NO_COMMA = Constraint(id="punctuation:no_comma")
UNKNOWN = Constraint(id="no:such_checker")


def prompt(*constraints: Constraint, answers: tuple[str, ...] = ()) -> Prompt:
    return Prompt(id="p", text="Say it.", source="test", constraints=constraints, answers=answers)


def rule(given: Prompt, *responses: str, strictness: str = "strict") -> list[Ruling]:
    settings = VerifiableJudge.model_validate({"kind": "verifiable", "strictness": strictness})
    (rulings,) = Verifiable(settings).judge([Group(prompt=given, responses=responses)])
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
    assert json.loads(rulings[1].detail)["answer"] == {"found": "17", "correct": False}


@pytest.mark.usefixtures("_checkers")
def test_an_answer_counts_as_one_more_constraint() -> None:
    (ruling,) = rule(prompt(NO_COMMA, answers=("18",)), "so, 18")
    assert ruling.value == 0.5


def test_the_name_tells_the_strictness() -> None:
    assert Verifiable(VerifiableJudge(kind="verifiable", strictness="loose")).name == "verifiable:loose"


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


def test_the_four_accuracies() -> None:
    met, lax, missed = (True, True), (False, True), (False, False)
    figures = ifeval_metrics(
        [verdict("a", met, met), verdict("b", lax, met, met), verdict("c", missed), verdict("d", met, None)]
    )
    assert figures == {
        "prompt_strict": pytest.approx(1 / 3),
        "prompt_loose": pytest.approx(2 / 3),
        "instruction_strict": pytest.approx(5 / 7),
        "instruction_loose": pytest.approx(6 / 7),
        "unevaluated": pytest.approx(1 / 8),
    }


def test_tallies_by_prompt_add_up_over_responses() -> None:
    tallies = ifeval_by_prompt([verdict("a", (True, True)), verdict("a", (False, True)), verdict("b", None)])
    assert tallies["a"] == Tally(
        responses=2, responses_strict=1, responses_loose=2, instructions=2, instructions_strict=1, instructions_loose=2
    )
    assert tallies["b"] == Tally(unevaluated=1)
    assert ifeval_figures([tallies["b"]]) == {"unevaluated": 1.0}


def test_verdicts_without_constraints_give_no_figures() -> None:
    assert ifeval_metrics([verdict("a")]) == {}
