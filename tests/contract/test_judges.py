"""What every judge promises, whatever it is made of. A new judge joins by one more entry in `JUDGES`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inward.config import JudgeSettings, PythonJudge, RewardModelJudge, VerifiableJudge
from inward.judging.combined.cascade import Cascade
from inward.judging.combined.panel import Panel
from inward.judging.combined.part import Part
from inward.judging.combined.routed import Routed
from inward.judging.judge import Group, Judge, Ruling
from inward.judging.make import make_judge
from inward.judging.pairwise.by_text import LLMComparer
from inward.judging.pairwise.judge import Pairwise
from inward.judging.pairwise.scripted import ScriptedChat
from inward.judging.scripted import Scripted
from inward.judging.stage import judge_outputs, score_outputs
from inward.judging.tournament.schemes import full
from inward.records import Constraint, Prompt
from tests.build import output
from tests.tiny_reward import tiny_reward_model

PROMPTS = [
    Prompt(id="answer", text="What is 6 times 7?", source="test", answers=("42",)),
    Prompt(
        id="constraint",
        text="Describe a fen without a comma.",
        source="test",
        constraints=(Constraint(id="punctuation:no_comma"),),
    ),
    Prompt(id="open", text="Tell me something.", source="test"),  # nothing that could be checked
]
RESPONSES = ("It is 42.", "The answer is 41, I think.", "42", "A fen is a wetland, fed by ground water.", "\N{SNOWMAN} <think>")
GROUPS = [Group(prompt=prompt, responses=RESPONSES) for prompt in PROMPTS]


def pairwise(_: Path) -> Judge:
    return Pairwise(comparer=LLMComparer(chat=ScriptedChat(failure_rate=0.3)), scheme=full, scheme_name="full")


def scripted(_: Path) -> Judge:
    return Scripted(score=lambda prompt, response: len(response) / len(prompt), failure_rate=0.3)


def part(key: str, judge: Judge, prior: float | None = None) -> Part:
    return Part(key=key, judge=judge, prior=prior)


def cascade(folder: Path) -> Judge:
    """Sure of some groups and not of others; the dear judge fails at times."""
    cheap = Scripted(score=lambda prompt, response: len(response) * (len(prompt) != 31), name="cheap")
    return Cascade(first=part("first", cheap), then=part("then", pairwise(folder), 0.4), sure=0.3, rho=0.1)


def panel(folder: Path) -> Judge:
    return Panel(members=(part("members.0", scripted(folder)), part("members.1", pairwise(folder), 0.4)), rule="average")


def agreeing_panel(folder: Path) -> Judge:
    vowels = Scripted(score=lambda _, response: sum(response.count(vowel) for vowel in "aeiou"), name="vowels")
    return Panel(members=(part("members.0", vowels), part("members.1", scripted(folder))), rule="agree")


def routed(folder: Path) -> Judge:
    other = Scripted(score=lambda _, response: response.count("a"), name="other")
    return Routed(
        parts=(part("routes.0.judge", scripted(folder)), part("otherwise", other)),
        route=lambda prompt: "routes.0.judge" if prompt.answers else "otherwise",
        rules="answers",
    )


def made(settings: Callable[[Path], JudgeSettings]) -> Callable[[Path], Judge]:
    return lambda folder: make_judge(settings(folder))


def own_function(folder: Path) -> Judge:
    """A user's function that leaves some responses unscored, for both of the reasons that there can be."""
    lines = (
        "def score(prompt, responses):",
        "    return [rate(text) for text in responses]",
        "def rate(text):",
        "    return None if 'think' in text else float('nan') if text == '42' else len(text)",
    )
    (folder / "mine.py").write_text("\n".join(lines))
    return make_judge(PythonJudge(kind="python", function=f"{folder}/mine.py:score"))


JUDGES: dict[str, Callable[[Path], Judge]] = {
    "python": own_function,
    "scripted": scripted,
    "routed": routed,
    "verifiable": made(lambda _: VerifiableJudge(kind="verifiable")),
    "verifiable, mean": made(lambda _: VerifiableJudge(kind="verifiable", strictness="mean")),
    "reward model": made(
        lambda folder: RewardModelJudge(
            kind="reward_model", path=str(tiny_reward_model(folder)), dtype="float32", max_tokens=80
        )
    ),
    "reward model, objectives": made(
        lambda folder: RewardModelJudge(
            kind="reward_model",
            path=str(tiny_reward_model(folder, names=("help", "truth", "length"))),
            dtype="float32",
            objectives={"help": 0.7, "length": -0.3},
            output="sigmoid",
        )
    ),
    "reward model, whole rows": made(
        lambda folder: RewardModelJudge(
            kind="reward_model", path=str(tiny_reward_model(folder)), dtype="float32", share_prompts=False, batch_tokens=300
        )
    ),
}
BY_COMPANY: dict[str, Callable[[Path], Judge]] = {
    "pairwise": pairwise,
    "cascade": cascade,
    "panel": panel,
    "panel, agreeing": agreeing_panel,
}
"""Those of which a ruling depends on the other responses in its group, and which promise nothing for one alone."""


@pytest.fixture(scope="module", params=JUDGES)
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    if request.param.startswith("verifiable"):
        pytest.importorskip("if_verifiable", reason="the extra `verifiable` is not installed")
    return JUDGES[request.param](tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module", params=[*JUDGES, *BY_COMPANY])
def any_judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Those that rule on each response by itself, and those that do not."""
    if request.param.startswith("verifiable"):
        pytest.importorskip("if_verifiable", reason="the extra `verifiable` is not installed")
    return {**JUDGES, **BY_COMPANY}[request.param](tmp_path_factory.mktemp("judge"))


def by_text(group: Group, rulings: list[Ruling]) -> dict[tuple[str, str | None], tuple[Any, str | None]]:
    return {
        (group.responses[ruling.first], None if ruling.second is None else group.responses[ruling.second]): (
            pytest.approx(ruling.value, abs=1e-4),  # rows of other batches are summed in another order; None equals None
            ruling.unscored,
        )
        for ruling in rulings
    }


def places(rulings: list[Ruling]) -> set[int]:
    return {place for ruling in rulings for place in (ruling.first, ruling.second) if place is not None}


def test_every_response_is_ruled_on_with_a_finite_value_or_a_reason(any_judge: Judge) -> None:
    rulings = any_judge.judge(GROUPS)
    assert [places(group) for group in rulings] == [set(range(len(RESPONSES)))] * len(GROUPS)
    assert all(len({(ruling.first, ruling.second) for ruling in group}) == len(group) for group in rulings)
    for ruling in (ruling for group in rulings for ruling in group):
        assert (ruling.value is None) == bool(ruling.unscored)
        assert ruling.value is None or math.isfinite(ruling.value)
        assert isinstance(json.loads(ruling.detail), dict)
    assert any(ruling.value is not None for group in rulings for ruling in group)


def test_order_changes_no_ruling(any_judge: Judge) -> None:
    expected = [by_text(group, ruled) for group, ruled in zip(GROUPS, any_judge.judge(GROUPS), strict=True)]
    turned = [Group(prompt=group.prompt, responses=group.responses[::-1]) for group in GROUPS[::-1]]
    assert [by_text(group, ruled) for group, ruled in zip(turned, any_judge.judge(turned), strict=True)][::-1] == expected


def test_company_changes_no_ruling(judge: Judge) -> None:
    expected = [by_text(group, ruled) for group, ruled in zip(GROUPS, judge.judge(GROUPS), strict=True)]
    for group, whole in zip(GROUPS, expected, strict=True):
        for text in group.responses:
            alone = Group(prompt=group.prompt, responses=(text,))
            assert by_text(alone, judge.judge([alone])[0]) == {(text, None): whole[text, None]}


def test_the_same_text_has_the_same_score(judge: Judge) -> None:
    twice = Group(prompt=PROMPTS[0], responses=("42", "something else of some length", "42"))
    first, _, last = sorted(judge.judge([twice])[0], key=lambda ruling: ruling.first)
    assert (first.value, first.unscored, first.detail) == (last.value, last.unscored, last.detail)


def test_thoughts_change_neither_verdicts_nor_scores(any_judge: Judge) -> None:
    """fairseq2's online branch sends the raw text to its judge, thoughts included."""

    def judged(thought: str) -> list[tuple[float | None, str | None, str]]:
        outputs = [
            output(f"{prompt.id}-{i}", prompt.id, response, thought=thought)
            for prompt in PROMPTS
            for i, response in enumerate((*RESPONSES, None))
        ]
        verdicts = judge_outputs(PROMPTS, outputs, any_judge)
        named = {id_ for verdict in verdicts for id_ in (verdict.first, verdict.second) if id_}
        assert len(named) == len(PROMPTS) * len(RESPONSES)
        assert thought not in repr(verdicts)
        assert len(score_outputs(outputs, verdicts)) == len(outputs)
        return [(verdict.value, verdict.unscored, verdict.detail) for verdict in verdicts]

    assert judged("thought one: 42") == judged("thought two, with a comma")


def test_no_groups_give_no_rulings_and_the_name_says_who_judged(any_judge: Judge) -> None:
    assert any_judge.judge([]) == []
    assert any_judge.name.strip()
    assert any_judge.costs().money == 0.0
