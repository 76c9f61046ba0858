"""Laws of win rates against a baseline, whatever the judge: consistent, biased towards a position, random, failing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.config import PairwiseJudge, ValidationSettings
from inward.evaluation.measurement import Measurement, evaluate_measured, judge_measured, score_measured
from inward.evaluation.summarise import choose, compare
from inward.evaluation.win_rates import answers_of, battles_against, contradictions, win_rates
from inward.judging.judge import Group, Ruling
from inward.judging.pairwise.judge import Pairwise
from inward.judging.spending import Spending
from inward.records import Evaluation, Output, Prompt, content_id
from inward.sampling.draws import Draws
from tests.build import output, prompt

Decide = Callable[[str, str, str], float | None]
DRAWS = Draws(k=1, tries=1, temperature=1.0, max_new_tokens=8)
SETTINGS = ValidationSettings(bootstrap=50)
JUDGE = PairwiseJudge(kind="pairwise", path="any")


@dataclass(frozen=True, slots=True)
class Fights:
    """A pairwise judge in both orders, whose verdict on a battle is a function of the prompt and the two texts in order."""

    decide: Decide
    name: str = "fights"

    def costs(self) -> Spending:
        return Spending()

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        assert all(len(set(group.responses)) == 2 for group in groups)
        return [[self._rule(group, first, second) for first, second in ((0, 1), (1, 0))] for group in groups]

    def _rule(self, group: Group, first: int, second: int) -> Ruling:
        value = self.decide(group.prompt.id, group.responses[first], group.responses[second])
        return Ruling(first=first, second=second, value=value, unscored="no verdict" if value is None else None)


def longer(_: str, first: str, second: str) -> float:
    return float((len(first) > len(second)) - (len(first) < len(second)))


def always_first(_: str, __: str, ___: str) -> float:
    return 1.0


def at_random(prompt_id: str, first: str, second: str) -> float:
    return random.Random(content_id(prompt_id, first, second)).choice((-1.0, 0.0, 1.0))


def failing(prompt_id: str, first: str, second: str) -> float | None:
    return random.Random(content_id(prompt_id, first, second)).choice((-1.0, 1.0, None))


JUDGES: dict[str, Decide] = {"longer": longer, "always first": always_first, "at random": at_random, "failing": failing}
judges = st.sampled_from(sorted(JUDGES))
texts = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "ab", "ba"]), min_size=1, max_size=4)
models = st.lists(texts, min_size=1, max_size=4)


def outputs_of(texts_by_prompt: Sequence[Sequence[str | None]], name: str = "") -> list[Output]:
    from dataclasses import replace

    return [
        replace(output(f"{name}{p}.{index}", f"{p}", text), index=index)
        for p, texts in enumerate(texts_by_prompt)
        for index, text in enumerate(texts)
    ]


def prompts_of(outputs: Sequence[Output]) -> list[Prompt]:
    return [prompt(f"question {id_}", id=id_) for id_ in sorted({output.prompt_id for output in outputs})]


def rates(model: Sequence[Output], other: Sequence[Output], judge: Fights) -> dict[str, float | None]:
    """Return the mean over each prompt's outputs: what an evaluation goes by."""
    baseline = answers_of(other)
    verdicts = battles_against(prompts_of(model), model, baseline, judge)
    scores = win_rates(model, baseline, verdicts)
    assert [score.output_id for score in scores] == [output.id for output in model]
    assert all((score.value is None) == (score.unscored is not None) for score in scores)
    by_prompt: dict[str, list[float]] = {output.prompt_id: [] for output in model}
    for score in scores:
        if score.value is not None:
            by_prompt[score.prompt_id].append(score.value)
    return {id_: fmean(values) if values else None for id_, values in by_prompt.items()}


@given(models, judges)
def test_a_model_against_itself_has_one_half_whatever_the_judge(model: list[list[str]], name: str) -> None:
    outputs = outputs_of(model)
    for rate in rates(outputs, outputs, Fights(JUDGES[name])).values():
        assert rate is not None
        assert rate == pytest.approx(0.5, abs=1e-12)


@given(models, models, st.sampled_from(["longer", "always first", "at random"]))
def test_two_models_win_rates_add_up_to_one(first: list[list[str]], second: list[list[str]], name: str) -> None:
    size = min(len(first), len(second))
    ours, theirs = outputs_of(first[:size]), outputs_of(second[:size])
    forth, back = rates(ours, theirs, Fights(JUDGES[name])), rates(theirs, ours, Fights(JUDGES[name]))
    for id_, rate in forth.items():
        other = back[id_]
        assert rate is not None
        assert other is not None
        assert rate + other == pytest.approx(1.0, abs=1e-12)


@given(models, models, judges, st.randoms(use_true_random=False))
def test_the_order_of_outputs_alters_nothing(
    first: list[list[str]], second: list[list[str]], name: str, rng: random.Random
) -> None:
    size = min(len(first), len(second))
    ours, theirs = outputs_of(first[:size]), outputs_of(second[:size])
    shuffled, others = rng.sample(ours, len(ours)), rng.sample(theirs, len(theirs))
    judge = Fights(JUDGES[name])
    assert rates(shuffled, others, judge) == rates(ours, theirs, judge)
    verdicts = {v.id: v for v in battles_against(prompts_of(ours), ours, answers_of(theirs), judge)}
    assert verdicts == {v.id: v for v in battles_against(prompts_of(ours), shuffled, answers_of(others), judge)}


def test_a_position_that_always_wins_makes_every_model_equal_and_is_counted() -> None:
    ours, theirs = outputs_of([["a", "bb"], ["ccc", "ccc"]]), outputs_of([["dddd", "a"], ["ab", "ba"]])
    verdicts = battles_against(prompts_of(ours), ours, answers_of(theirs), Fights(always_first))
    assert {score.value for score in win_rates(ours, answers_of(theirs), verdicts)} == {0.5}
    assert contradictions(verdicts) == 1.0
    assert contradictions(battles_against(prompts_of(ours), ours, answers_of(theirs), Fights(longer))) == 0.0
    assert contradictions([]) is None


def test_the_better_model_wins_by_what_it_is_better() -> None:
    ours, theirs = outputs_of([["ccc", "a", "dddd"], ["bb"]]), outputs_of([["bb"], ["ccc", "a"]])
    assert rates(ours, theirs, Fights(longer)) == {"0": pytest.approx(2 / 3), "1": 0.5}


def measured(model: Sequence[Sequence[str | None]], other: Sequence[Sequence[str | None]], decide: Decide) -> Evaluation:
    ours, theirs = outputs_of(model), outputs_of(other)
    measurement = Measurement(
        prompts=tuple(prompts_of([*ours, *theirs])), draws=DRAWS, judge=JUDGE, baseline=answers_of(theirs)
    )
    verdicts = judge_measured(measurement, ours, Fights(decide))
    scores = score_measured(measurement, ours, verdicts)
    return evaluate_measured(measurement, "model", "thinking", ours, verdicts, scores, SETTINGS)


def test_a_broken_format_is_a_battle_lost_and_a_prompt_without_an_answer_is_left_out_for_all() -> None:
    base: list[list[str | None]] = [["bb"], ["bb"], [None]]
    clean = measured([["ccc", "ccc"], ["a", "a"], ["ccc", "ccc"]], base, longer)
    broken = measured([["ccc", None], ["a", "a"], [None, None]], base, longer)
    assert clean.score_by_prompt == {"0": 1.0, "1": 0.0}
    assert broken.score_by_prompt == {"0": 0.5, "1": 0.0}
    assert (broken.prompts, broken.unscored, broken.metrics["win_rate.unanswered"]) == (2, 0, 1.0)
    assert broken.metrics["score_of_responses"] == 0.5
    assert compare(clean, broken, SETTINGS).difference == 0.25
    assert choose([broken, clean]) == 1


def test_what_the_judge_leaves_undecided_is_counted_and_enters_no_mean() -> None:
    def undecided(_: str, first: str, second: str) -> float | None:
        return None if "dddd" in (first, second) else longer("", first, second)

    evaluation = measured([["ccc", "dddd"], ["dddd", "dddd"]], [["bb", "bb"], ["bb", "bb"]], undecided)
    assert evaluation.score_by_prompt == {"0": 1.0}
    assert evaluation.unscored == 3


def test_a_measurement_has_a_baseline_exactly_where_its_judge_needs_one() -> None:
    from inward.config import VerifiableJudge

    with pytest.raises(AssertionError, match="a pairwise judge has a baseline, and no other has"):
        Measurement(prompts=(), draws=DRAWS, judge=JUDGE)
    with pytest.raises(AssertionError, match="a pairwise judge has a baseline, and no other has"):
        Measurement(prompts=(), draws=DRAWS, judge=VerifiableJudge(kind="verifiable"), baseline={})
    asked = Measurement(prompts=(), draws=DRAWS, judge=JUDGE, baseline={}).asked_judge
    assert isinstance(asked, PairwiseJudge)
    assert asked.scheme == "full"


def test_the_tournament_of_a_real_pairwise_judge_asks_both_orders() -> None:
    from inward.judging.pairwise.by_text import LLMComparer
    from inward.judging.pairwise.scripted import ScriptedChat
    from inward.judging.tournament.schemes import full

    chat = ScriptedChat()
    judge = Pairwise(comparer=LLMComparer(chat=chat), scheme=full, scheme_name="full")
    ours, theirs = outputs_of([["a longer one"], ["short"]]), outputs_of([["brief"], ["a longer answer"]])
    verdicts = battles_against(prompts_of(ours), ours, answers_of(theirs), judge)
    assert [score.value for score in win_rates(ours, answers_of(theirs), verdicts)] == [1.0, 0.0]
    assert len(verdicts) == chat.costs().answers == 4
