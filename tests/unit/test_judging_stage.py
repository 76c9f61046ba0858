"""The judging stage: what reaches the judge, what is shared, and what stays unscored with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from inward.config import RewardModelJudge, VerifiableJudge
from inward.errors import JudgeError
from inward.judging.judge import Group, Ruling
from inward.judging.scripted import Scripted
from inward.judging.stage import judge_outputs, require_some_scores, score_outputs
from inward.records import Verdict
from tests.build import output, prompt, score

PROMPTS = [prompt("first", id="p"), prompt("second", id="q")]
BY_LENGTH = Scripted(score=lambda _, response: float(len(response)))


@dataclass
class Recorder:
    """A judge that keeps what it was shown."""

    seen: list[Group] = field(default_factory=list)
    rule: Callable[[int], Ruling] = lambda first: Ruling(first=first, value=1.0)
    name: str = "recorder"

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        self.seen += groups
        return [[self.rule(first) for first in range(len(group.responses))] for group in groups]


def test_each_text_of_a_prompt_is_judged_once_and_shared_by_all_copies() -> None:
    outputs = [output("a", "p", "same"), output("b", "q", "same"), output("c", "p", "same"), output("d", "p", "other")]
    judge = Recorder()
    verdicts = judge_outputs(PROMPTS, outputs, judge)
    assert [(group.prompt.id, group.responses) for group in judge.seen] == [("p", ("other", "same")), ("q", ("same",))]
    assert [group.copies for group in judge.seen] == [(1, 2), (1,)], "length control counts every output"
    assert [verdict.first for verdict in verdicts] == ["a", "b", "c", "d"]
    assert len({verdict.id for verdict in verdicts}) == 4


def test_neither_thoughts_nor_malformed_outputs_reach_the_judge() -> None:
    outputs = [output("a", "p", "shown", thought="SECRET"), output("b", "p", None, thought="SECRET"), output("c", "q", None)]
    judge = Recorder()
    verdicts = judge_outputs(PROMPTS, outputs, judge)
    assert "SECRET" not in repr(judge.seen)
    assert [group.prompt.id for group in judge.seen] == ["p"]
    assert [verdict.first for verdict in verdicts] == ["a"]
    found = score_outputs(outputs, verdicts)
    assert [item.unscored for item in found] == [None, "format error: no_response_marker", "format error: no_response_marker"]


def test_scores_follow_the_output_not_the_position() -> None:
    outputs = [output("a", "p", "xxx"), output("b", "q", "x"), output("c", "p", "xx")]
    verdicts = judge_outputs(PROMPTS, outputs, BY_LENGTH)
    found = score_outputs(outputs[::-1], verdicts[1:] + verdicts[:1])
    assert [(item.output_id, item.prompt_id, item.value) for item in found] == [
        ("c", "p", 2.0),
        ("b", "q", 1.0),
        ("a", "p", 3.0),
    ]


def test_verdicts_do_not_depend_on_the_order_of_outputs_and_name_judge_and_output() -> None:
    outputs = [output("a", "p", "xxx"), output("b", "q", "x"), output("c", "p", "xx")]
    verdicts = judge_outputs(PROMPTS, outputs, BY_LENGTH)
    assert judge_outputs(PROMPTS[::-1], outputs[::-1], BY_LENGTH) == verdicts[::-1]
    other = judge_outputs(PROMPTS, outputs, replace(BY_LENGTH, name="other"))
    assert not {verdict.id for verdict in other} & {verdict.id for verdict in verdicts}


def test_what_the_judge_could_not_score_keeps_its_reason() -> None:
    outputs = [output("a", "p", "x"), output("b", "p", "xx")]
    failing = Scripted(score=lambda _, response: 1.0, failure_rate=1.0)
    found = score_outputs(outputs, judge_outputs(PROMPTS, outputs, failing))
    assert [(item.value, item.unscored) for item in found] == [(None, "scripted failure")] * 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_no_score(value: float) -> None:
    outputs = [output("a", "p", "x")]
    verdicts = judge_outputs(PROMPTS, outputs, Scripted(score=lambda *_: value))
    assert verdicts[0].value is None
    assert verdicts[0].unscored == f"the judge's value is not finite: {value}"
    stored = replace(verdicts[0], value=value, unscored=None)
    assert score_outputs(outputs, [stored])[0].unscored == f"the judge's value is not finite: {value}"


@pytest.mark.parametrize(
    "rule",
    [
        lambda first: Ruling(first=0, value=1.0),  # twice the first, never the second
        lambda first: Ruling(first=first),  # neither a value nor a reason
        lambda first: Ruling(first=first, value=1.0, unscored="both"),
        lambda first: Ruling(first=first, second=first, value=1.0),  # a battle against itself
        lambda first: Ruling(first=0, second=1, value=1.0),  # the same battle twice
        lambda first: Ruling(first=first, second=1 - first if first else None, value=1.0),  # a score among battles
        lambda first: Ruling(first=first, second=1 - first, value=0.5),  # half a win
        lambda first: Ruling(first=first, second=2, value=1.0),  # against nobody
    ],
)
def test_a_judge_that_breaks_the_protocol_is_caught(rule: Callable[[int], Ruling]) -> None:
    outputs = [output("a", "p", "x"), output("b", "p", "y")]
    with pytest.raises(AssertionError):
        judge_outputs(PROMPTS, outputs, Recorder(rule=rule))


def test_a_response_without_a_verdict_is_never_passed_over() -> None:
    with pytest.raises(AssertionError, match="no verdict"):
        score_outputs([output("a", "p", "x")], [])
    with pytest.raises(AssertionError, match="no prompt"):
        judge_outputs(PROMPTS, [output("a", "unknown", "x")], BY_LENGTH)


def test_details_travel_with_the_verdict() -> None:
    judge = Recorder(rule=lambda first: Ruling(first=first, value=1.0, detail=json.dumps({"tokens": 3})))
    verdicts: list[Verdict] = judge_outputs(PROMPTS, [output("a", "p", "x")], judge)
    assert json.loads(verdicts[0].detail) == {"tokens": 3}


def test_a_stage_without_a_single_score_stops_with_the_reasons() -> None:
    outputs = [output(str(i), "p", "x") for i in range(3)]
    scores = [score(outputs[0], None, "timeout"), score(outputs[1], None, "timeout"), score(outputs[2], None, "refused")]
    with pytest.raises(JudgeError, match=r"none of 3 outputs was scored:\n  2 x timeout\n  1 x refused\nCheck the judge"):
        require_some_scores(scores)
    require_some_scores([*scores, score(output("d", "p", "x"), 0.0)])
    require_some_scores([])


def test_a_stage_of_format_errors_points_at_the_format_not_the_judge() -> None:
    outputs = [output("a", "p", None)]
    with pytest.raises(JudgeError, match=r"1 x format error: no_response_marker\n.*thought\.scaffold"):
        require_some_scores(score_outputs(outputs, []))


def test_a_scripted_judge_fails_on_the_same_responses_whatever_the_order() -> None:
    judge = Scripted(score=lambda _, response: float(len(response)), failure_rate=0.5, seed=3)
    texts = tuple(str(i) for i in range(200))
    forward = judge.judge([Group(prompt=PROMPTS[0], responses=texts)])[0]
    backward = judge.judge([Group(prompt=PROMPTS[0], responses=texts[::-1])])[0]
    failed = {texts[ruling.first] for ruling in forward if ruling.unscored}
    assert failed == {texts[::-1][ruling.first] for ruling in backward if ruling.unscored}
    assert 60 < len(failed) < 140


def test_only_a_bounded_judge_has_a_lowest_score() -> None:
    assert VerifiableJudge(kind="verifiable").lowest_score == 0.0
    assert RewardModelJudge(kind="reward_model", path="x").lowest_score is None
