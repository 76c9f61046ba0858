"""Intervals against scipy and closed forms; the figures of an evaluation; the choice of a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from inward import statistics as bootstrap
from inward.config import ValidationSettings
from inward.errors import JudgeError, UsageError
from inward.evaluation.summarise import SCORE_OF_RESPONSES, choose, compare, evaluate
from inward.records import Evaluation, Verdict
from inward.statistics import bootstrap_mean, paired_bootstrap
from tests.build import output, score

SETTINGS = ValidationSettings(bootstrap=500)
VALUES = np.random.default_rng(7).normal(3.0, 2.0, size=200)


def test_the_interval_agrees_with_scipy() -> None:
    ours = bootstrap_mean(VALUES.tolist(), resamples=9000, seed=1)
    theirs = stats.bootstrap((VALUES,), np.mean, n_resamples=9000, method="percentile", rng=2).confidence_interval
    assert ours.mean == pytest.approx(VALUES.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.03)  # the intervals are 0.55 wide
    assert ours.high == pytest.approx(theirs.high, abs=0.03)


def test_the_interval_agrees_with_the_normal_one_where_that_holds() -> None:
    ours = bootstrap_mean(VALUES.tolist(), resamples=9000, seed=1)
    half = 1.96 * VALUES.std() / np.sqrt(len(VALUES))
    assert ours.high - ours.low == pytest.approx(2 * half, rel=0.05)


def test_resampling_two_values_gives_the_binomial_distribution_of_their_means() -> None:
    means = bootstrap._resampled_means(np.array([0.0, 1.0]), 40_000, 0)
    assert {value: round(float((means == value).mean()), 2) for value in (0.0, 0.5, 1.0)} == {0.0: 0.25, 0.5: 0.5, 1.0: 0.25}


def test_blocks_of_draws_bound_memory_and_lose_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_mean(VALUES.tolist(), resamples=1000, seed=1)
    monkeypatch.setattr(bootstrap, "MAX_NUMBERS", 450)  # two draws of 200 at a time
    assert bootstrap_mean(VALUES.tolist(), resamples=1000, seed=1) == whole
    assert bootstrap._resampled_means(VALUES, 7, 0).shape == (7,)


def test_one_value_has_an_interval_of_no_width_and_a_seed_repeats_itself() -> None:
    one = bootstrap_mean([2.5], resamples=100, seed=0)
    assert (one.mean, one.low, one.high) == (2.5, 2.5, 2.5)
    assert bootstrap_mean([1, 2, 4], resamples=50, seed=1) == bootstrap_mean([1, 2, 4], resamples=50, seed=1)
    assert bootstrap_mean(VALUES.tolist(), resamples=50, seed=1) != bootstrap_mean(VALUES.tolist(), resamples=50, seed=2)


def test_pairs_see_a_difference_that_the_spread_between_prompts_hides() -> None:
    a = {str(i): value + 0.1 for i, value in enumerate(VALUES)}
    b = {str(i): float(value) for i, value in enumerate(VALUES)}
    found = paired_bootstrap(a, b, resamples=1000, seed=0)
    assert found.difference == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)
    assert found.p == pytest.approx(2 / 1001)
    apart = (bootstrap_mean(list(a.values()), resamples=1000, seed=0), bootstrap_mean(list(b.values()), resamples=1000, seed=1))
    assert apart[0].low < apart[1].high  # each by itself would show nothing


def test_pairs_are_taken_over_common_prompts_whatever_their_order() -> None:
    a, b = {"x": 1.0, "y": 0.0, "only a": 9.0}, {"y": 1.0, "x": 0.5, "only b": 9.0, "b too": 9.0}
    found = paired_bootstrap(a, b, resamples=100, seed=0)
    assert (found.difference, found.prompts, found.left_out) == (-0.25, 2, 3)
    assert paired_bootstrap(dict(reversed(a.items())), b, resamples=100, seed=0) == found
    mirrored = paired_bootstrap(b, a, resamples=100, seed=0)
    assert (mirrored.difference, mirrored.low, mirrored.high, mirrored.p) == (0.25, -found.high, -found.low, found.p)


def test_equal_models_do_not_differ_and_disjoint_ones_cannot_be_compared() -> None:
    same = paired_bootstrap({"x": 1.0, "y": 2.0}, {"x": 1.0, "y": 2.0}, resamples=100, seed=0)
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(UsageError, match="share no scored prompt"):
        paired_bootstrap({"x": 1.0}, {"y": 1.0}, resamples=100, seed=0)


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    random = np.random.default_rng(0)
    zeros = dict.fromkeys(map(str, range(60)), 0.0)
    found = [
        paired_bootstrap(dict(zip(zeros, random.normal(size=60).tolist(), strict=True)), zeros, resamples=200, seed=s).p
        for s in range(2000)
    ]
    assert 0.04 < np.mean(np.array(found) < 0.05) < 0.075  # 0.056 over 12,000: percentile intervals are a little narrow
    assert 0.46 < np.mean(np.array(found) < 0.5) < 0.54


def evaluated(**change: object) -> Evaluation:
    """Two samples of three prompts: p is sound, q has a response that came at the third try, r never kept the format."""
    made = [
        output("p1", "p", "xxxx", thought="tt"),
        output("p2", "p", "xx", thought="tttt"),
        output("q1", "q", "xx", tries=3),
        output("q2", "q", "yy"),
        output("r1", "r", None, thought="tttttt", tries=3),
        output("r2", "r", None, tries=3),
    ]
    scores = [score(made[0], 1.0), score(made[1], 0.5), score(made[2], 0.25), *(score(item, None) for item in made[3:])]
    if change.pop("reverse", False):
        made, scores = made[::-1], scores[::-1]
    return evaluate("model", "thinking", made, scores, SETTINGS, **change)  # type: ignore[arg-type]


def test_without_a_lowest_score_what_has_no_score_is_counted_and_passed_over() -> None:
    found = evaluated()
    assert (found.prompts, found.outputs, found.unscored) == (3, 6, 1)
    assert found.score_by_prompt == {"p": 0.75, "q": 0.25}
    assert found.score == 0.5  # prompts weigh the same, however many samples were scored
    assert found.low is not None
    assert found.high is not None
    assert 0.25 <= found.low <= found.score <= found.high <= 0.75
    assert found.format_errors == pytest.approx(3 / 6)
    assert found.unresolved == pytest.approx(2 / 6)
    assert found.thought_length == pytest.approx(4.0)
    assert found.response_length == pytest.approx(10 / 4)
    assert found.metrics == {}
    assert evaluated(reverse=True) == found


def test_a_format_that_stays_broken_counts_as_the_lowest_score_and_a_failure_of_the_judge_does_not() -> None:
    found = evaluated(lowest=-1.0)
    assert found.score_by_prompt == {"p": 0.75, "q": 0.25, "r": -1.0}
    assert found.score == 0.0
    assert found.low is not None
    assert found.high is not None
    assert -1.0 <= found.low < 0.0 < found.high <= 0.75
    assert found.metrics == {SCORE_OF_RESPONSES: 0.5}
    assert found.unscored == 1
    assert found.unresolved == pytest.approx(2 / 6)


def test_within_a_prompt_a_broken_format_weighs_as_much_as_a_response() -> None:
    made = [output("a", "p", "x"), output("b", "p", None)]
    found = evaluate("m", "thinking", made, [score(made[0], 1.0), score(made[1], None)], SETTINGS, lowest=0.0)
    assert (found.score_by_prompt, found.metrics) == ({"p": 0.5}, {SCORE_OF_RESPONSES: 1.0})


@pytest.mark.parametrize(("lowest", "figure"), [(0.0, 0.0), (None, None)])
def test_a_model_whose_outputs_all_break_the_format(lowest: float | None, figure: float | None) -> None:
    made = [output("a", "p", None), output("b", "q", None)]
    found = evaluate("m", "thinking", made, [score(item, None) for item in made], SETTINGS, lowest=lowest)
    assert (found.score, found.low, found.high, found.response_length) == (figure, figure, figure, None)
    assert (found.format_errors, found.unresolved, found.unscored) == (1.0, 1.0, 0)
    assert found.metrics == {}


def test_numbers_of_the_judge_become_metrics() -> None:
    def verdict(id: str, detail: str) -> Verdict:
        return Verdict(id=id, prompt_id="p", judge="j", first=id, second=None, value=1.0, unscored=None, detail=detail)

    details = ['{"truncated": true, "tokens": 10, "note": "x"}', '{"truncated": false, "tokens": 5}', "{}"]
    found = evaluated(verdicts=[verdict(str(i), detail) for i, detail in enumerate(details)])
    assert found.metrics == {"judge.tokens": 7.5, "judge.truncated": 0.5}


def test_the_arms_are_compared_over_the_prompts_scored_in_both() -> None:
    thinking, direct = evaluated(), replace(evaluated(), score_by_prompt={"p": 0.25, "r": 1.0})
    found = compare(thinking, direct, SETTINGS)
    assert (found.difference, found.prompts, found.left_out) == (0.5, 1, 2)


def test_no_arm_wins_and_no_checkpoint_is_chosen_for_breaking_its_format() -> None:
    easy, hard = output("a", "easy", "x"), output("b", "hard", "y")
    broken = replace(hard, response=None)
    sound = evaluate("m", "direct", [easy, hard], [score(easy, 1.0), score(hard, 0.25)], SETTINGS, lowest=0.0)
    evading = evaluate("m", "thinking", [easy, broken], [score(easy, 1.0), score(broken, None)], SETTINGS, lowest=0.0)
    found = compare(evading, sound, SETTINGS)
    assert (found.difference, found.prompts, found.left_out) == (-0.125, 2, 0)
    assert choose([evading, sound]) == 1


def at(score: float | None) -> Evaluation:
    return replace(evaluated(), score=score)


def test_the_best_checkpoint_is_the_earliest_of_the_highest_scores() -> None:
    assert choose([at(0.1), at(0.3), at(0.3), at(0.2)]) == 1
    assert choose([at(None), at(-1.0), at(None)]) == 1
    with pytest.raises(JudgeError, match="none of 2 evaluated checkpoints has a score"):
        choose([at(None), at(None)])
