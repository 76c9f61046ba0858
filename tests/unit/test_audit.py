"""What an audit says of stored verdicts: by hand, by law, and beside scipy."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from inward.config import JudgeLimits, JudgeSettings
from inward.errors import JudgeError
from inward.judging.pairwise.judge import ALONE
from inward.judging.pairwise.scripted import ScriptedComparer
from inward.judging.stage import judge_outputs, score_outputs
from inward.judging.tournament.run import run_tournament
from inward.records import Output, Score, Verdict
from inward.trust.audit import Audit, audit, longer_wins, reasons
from inward.trust.figures import NOTHING, Figure, mean, share
from inward.trust.limits import breaches, check_limits
from inward.trust.relations import consistent, cyclic, cyclic_triples, tied, won_by_first
from tests.build import output, prompt, score

Results = dict[tuple[str, str], int]


def verdict(first: str, second: str | None, value: float | None, *, of: str = "p", unscored: str = "no verdict") -> Verdict:
    return Verdict(
        id=f"{of}-{first}-{second}",
        prompt_id=of,
        judge="a judge",
        first=first,
        second=second,
        value=value,
        unscored=unscored if value is None else None,
    )


def both_ways(results: Results) -> Results:
    return results | {(second, first): -value for (first, second), value in results.items()}


def test_a_share_counts_and_an_undefined_one_is_none() -> None:
    found = share([("p", (1, 4)), ("q", (2, 2)), ("p", (0, 1)), ("r", (0, 0))])
    assert (found.value, found.n) == (3 / 7, 7)
    assert found.low is not None
    assert found.high is not None
    assert 0.2 <= found.low < 3 / 7 < found.high <= 1.0
    assert share([("p", (0, 0))]) == share([]) == NOTHING == Figure(value=None, low=None, high=None, n=0)
    alone = share([("p", (1, 2))])
    assert (alone.value, alone.low, alone.high, alone.n) == (0.5, None, None, 2), "one prompt says nothing of others"


def test_the_interval_of_a_share_is_that_of_the_clusters() -> None:
    """Ten equal answers to one prompt are one draw: as far apart as the means of whole prompts are."""
    random_ = np.random.default_rng(0)
    values = {f"p{n}": float(random_.random()) for n in range(60)}
    clustered, plain = share((p, (10 * v, 10)) for p, v in values.items()), mean(values)
    assert clustered.value == pytest.approx(plain.value)
    assert clustered.low == pytest.approx(plain.low, abs=0.02)
    assert clustered.high == pytest.approx(plain.high, abs=0.02)


def test_consistency_position_and_ties_by_hand() -> None:
    results: Results = {
        ("a", "b"): 1,
        ("b", "a"): -1,  # the same winner
        ("a", "c"): 1,
        ("c", "a"): 1,  # what stands first
        ("b", "c"): 0,
        ("c", "b"): 0,  # a tie twice
        ("a", "d"): 0,
        ("d", "a"): 1,  # a tie and a win
        ("b", "d"): -1,  # asked once
    }
    assert consistent(results) == (2, 4)
    assert won_by_first(results) == (4, 6)
    assert tied(results) == (3, 9)
    assert consistent({}) == won_by_first({}) == tied({}) == (0, 0)


def test_cycles_by_hand() -> None:
    circle: Results = {("a", "b"): 1, ("b", "c"): 1, ("c", "a"): 1}
    assert cyclic(circle) == (1, 1)
    assert cyclic_triples(circle) == (1, 1)
    order: Results = {("a", "b"): 1, ("b", "c"): 1, ("a", "c"): 1}
    assert cyclic(order) == (0, 1)
    assert cyclic_triples(order) == (0, 1)
    assert cyclic({("a", "b"): 1, ("b", "c"): 1}) == (0, 0), "a chain could not be a cycle"
    square: Results = {("a", "b"): 1, ("b", "c"): 1, ("c", "d"): 1, ("d", "a"): 1}
    assert cyclic(square) == (1, 1)
    assert cyclic_triples(square) == (0, 0), "no three of them were all compared"
    split: Results = {**circle, ("a", "c"): 1}  # c beat a, and a beat c: no majority
    assert cyclic(split) == (0, 0)
    assert cyclic({}) == cyclic_triples({}) == (0, 0)


@given(st.integers(3, 7), st.randoms(use_true_random=False))
def test_cyclic_triples_are_those_that_can_be_counted_out(size: int, rng: random.Random) -> None:
    names = "abcdefg"[:size]
    results = {(m, n): rng.choice((-1, 0, 1)) for m in names for n in names if m != n and rng.random() < 0.8}
    net = {(m, n): results.get((m, n), 0) - results.get((n, m), 0) for m in names for n in names}
    beats = {duel for duel, value in net.items() if value > 0}
    triples = [(a, b, c) for a in names for b in names for c in names if a < b < c]
    decided = [t for t in triples if all((m, n) in beats or (n, m) in beats for m, n in (t[:2], t[1:], t[::2]))]
    circles = [(a, b, c) for a, b, c in decided if {(a, b), (b, c), (c, a)} <= beats or {(b, a), (c, b), (a, c)} <= beats]
    assert cyclic_triples(results) == (len(circles), len(decided))


def test_a_true_order_has_no_cycle_and_a_coin_makes_a_quarter_of_triples_cycles() -> None:
    strength = {name: n for n, name in enumerate("abcdefgh")}
    ordered = {(m, n): 1 if strength[m] > strength[n] else -1 for m in strength for n in strength if m != n}
    assert cyclic(ordered) == (0, 1)
    assert cyclic_triples(ordered) == (0, 56)
    rng = random.Random(0)
    counts = np.zeros(2)
    for _ in range(300):
        coin = {(m, n): rng.choice((-1, 1)) for m in "abcdefgh" for n in "abcdefgh" if m < n}
        counts += cyclic_triples(both_ways(coin))
    assert counts[0] / counts[1] == pytest.approx(0.25, abs=0.02)


def texts(prompt_id: str, *lengths: int) -> list[Output]:
    return [output(f"{prompt_id}{n}", prompt_id, "x" * length) for n, length in enumerate(lengths)]


def test_length_figures_are_within_prompts_and_averaged() -> None:
    first, second, flat = texts("p", 5, 9, 7, 7), texts("q", 1, 2, 3, 4), texts("r", 3, 6, 9, 12)
    scores = [score(o, v) for o, v in zip(first, (0.1, 0.9, 0.5, 0.2), strict=True)]
    scores += [score(o, v) for o, v in zip(second, (1.0, 0.8, 0.6, 0.4), strict=True)] + [score(o, 0.5) for o in flat]
    found = audit([*first, *second, *flat], [], scores)
    pearson = stats.pearsonr([5, 9, 7, 7], [0.1, 0.9, 0.5, 0.2]).statistic
    spearman = stats.spearmanr([5, 9, 7, 7], [0.1, 0.9, 0.5, 0.2]).statistic
    assert (found.pearson.value, found.pearson.n) == (pytest.approx((pearson - 1) / 2), 2), "no spread, no correlation"
    assert found.spearman.value == pytest.approx((spearman - 1) / 2)
    assert (found.no_spread.value, found.no_spread.n) == (1 / 3, 3)
    assert (found.longer_wins.value, found.longer_wins.n) == (5 / 11, 11)
    assert found.length_bias == found.spearman, "no judge is taken for a verifiable one"
    assert longer_wins(np.array([1.0]), np.array([3.0])) == (0, 0)


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_no_correlation_is_taken_from_few_samples(samples: int) -> None:
    """Two samples always correlate fully, so a prompt counts from four scored responses on."""
    outputs = [text for n in range(40) for text in texts(f"p{n:02d}", *range(5, 5 + samples))]
    scores = [score(o, float(len(o.response or ""))) for o in outputs]
    verdicts = [verdict(o.id, None, float(len(o.response or "")), of=o.prompt_id) for o in outputs]
    found = audit(outputs, verdicts, scores)
    assert (found.spearman.n, found.pearson.n) == ((40, 40) if samples == 4 else (0, 0))
    assert bool(breaches(found, JudgeLimits())) == (samples == 4)


VERIFIABLE = {"kind": "verifiable"}
BATTLES = {"kind": "pairwise", "path": "a/model"}
LENGTH_JUDGES: list[tuple[dict[str, object] | None, str | None, bool]] = [
    (None, None, True),
    (BATTLES, None, True),
    (VERIFIABLE, None, False),
    ({"kind": "panel", "members": [VERIFIABLE, VERIFIABLE | {"strictness": "loose"}]}, None, False),
    ({"kind": "panel", "members": [VERIFIABLE, BATTLES]}, None, True),
    ({"kind": "routed", "routes": [{"verifiable": True, "judge": VERIFIABLE}]}, "routes.0.judge", False),
    ({"kind": "routed", "routes": [{"verifiable": True, "judge": VERIFIABLE}], "otherwise": BATTLES}, "routes.0.judge", False),
    ({"kind": "routed", "routes": [{"verifiable": True, "judge": VERIFIABLE}], "otherwise": BATTLES}, "otherwise", True),
    ({"kind": "cascade", "first": VERIFIABLE, "then": BATTLES}, "first", False),
    ({"kind": "cascade", "first": VERIFIABLE, "then": BATTLES}, "then", True),
]


@pytest.mark.parametrize(("settings", "part", "stops"), LENGTH_JUDGES)
def test_a_limit_on_length_does_not_hold_for_verifiable_judges(
    settings: dict[str, object] | None, part: str | None, stops: bool
) -> None:
    """A prompt may demand a length: then its score follows the length, and nothing is broken."""
    judge = settings and TypeAdapter[JudgeSettings](JudgeSettings).validate_json(json.dumps(settings))
    detail = json.dumps({"ruled_by": {"part": part, "judge": "a judge"}} if part else {})
    outputs = [text for n in range(40) for text in texts(f"p{n:02d}", 5, 6, 7, 8)]
    scores = [score(o, float(len(o.response or ""))) for o in outputs]
    verdicts = [replace(verdict(o.id, None, 1.0, of=o.prompt_id), detail=detail) for o in outputs]
    expected = pytest.raises(JudgeError, match="max_length_correlation") if stops else nullcontext()
    with expected:
        check_limits(outputs, verdicts, scores, JudgeLimits(), where="here", judge=judge)


def test_what_is_not_the_judges_fault_is_kept_apart() -> None:
    outputs = [output("a"), output("b"), output("c", response=None), output("d", "q"), output("e", "q", "another")]
    verdicts = [verdict("a", None, None, unscored=ALONE), verdict("b", None, None, unscored=ALONE)]
    verdicts += [verdict("d", "e", None, of="q"), verdict("e", "d", None, of="q", unscored="cut off at 12 tokens: ...and so")]
    found = audit(outputs, verdicts, score_outputs(outputs, verdicts))
    assert (found.format_errors.value, found.format_errors.n) == (1 / 5, 5)
    assert (found.unscored.value, found.unscored.n) == (2 / 4, 4)
    assert (found.alone.value, found.alone.n) == (2 / 4, 4)
    assert (found.errors.value, found.errors.n, found.verdicts) == (1.0, 2, 2)
    assert found.reasons == {"cut off at N tokens": 1, "no verdict": 1}
    assert found.consistency == found.ties == found.spearman == NOTHING


def test_reasons_are_counted_without_what_differs_from_case_to_case() -> None:
    verdicts = [verdict(str(n), "b", None, unscored=f"{n} tokens and 5 to answer exceed the context of 40") for n in range(3)]
    verdicts += [verdict("x", "y", None, unscored="HTTP 500: oops 17"), verdict("y", "x", 1.0)]
    assert reasons(verdicts) == {"N tokens and 5 to answer exceed the context of 40": 3, "HTTP 500": 1}


def judged(
    decide: Callable[[str, str], float], *, prompts: int = 30, k: int = 4
) -> tuple[list[Output], list[Verdict], list[Score]]:
    """Return a stage that a comparer judged in full; response n has n + 1 characters, but for a prefix that is no order."""
    from dataclasses import dataclass

    from inward.judging.judge import Group, Ruling
    from inward.judging.tournament.schemes import full

    @dataclass
    class Judge:
        name: str = "reader"

        def judge(self, groups: list[Group]) -> list[list[Ruling]]:
            comparer = ScriptedComparer(decide=lambda battle: decide(battle.first, battle.second))
            return run_tournament(groups, comparer, full)

    asked = [prompt(f"question {n}", id=f"p{n:02d}") for n in range(prompts)]
    rng = random.Random(0)
    outputs = [output(f"{p.id}-{n}", p.id, f"{rng.randrange(10**6):06d}" + "x" * n) for p in asked for n in range(k)]
    verdicts = judge_outputs(asked, outputs, Judge())  # type: ignore[arg-type]
    return outputs, verdicts, score_outputs(outputs, verdicts)


JUDGES: dict[str, Callable[[str, str], float]] = {
    "true": lambda first, second: 1.0 if first > second else -1.0,
    "first": lambda first, second: 1.0,
    "second": lambda first, second: -1.0,
    "tie": lambda first, second: 0.0,
    "long": lambda first, second: 1.0 if len(first) > len(second) else -1.0,
    "short": lambda first, second: -1.0 if len(first) > len(second) else 1.0,
}


def test_judges_are_known_by_their_figures() -> None:
    found = {name: audit(*judged(decide)) for name, decide in JUDGES.items()}
    assert found["true"].consistency.value == 1.0
    assert found["true"].first_position.value == 0.5
    assert found["true"].cyclic_groups.value == 0.0
    assert abs(found["true"].spearman.value or 0) < 0.3
    assert (found["first"].consistency.value, found["first"].first_position.value) == (0.0, 1.0)
    assert (found["second"].consistency.value, found["second"].first_position.value) == (0.0, 0.0)
    assert (found["tie"].ties.value, found["tie"].first_position) == (1.0, NOTHING)
    assert found["tie"].no_spread.value == 1.0
    assert found["long"].spearman.value == pytest.approx(1.0)
    assert found["short"].spearman.value == pytest.approx(-1.0)
    assert (found["long"].longer_wins.value, found["short"].longer_wins.value) == (1.0, 0.0)


@given(st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(rng: random.Random) -> None:
    outputs, verdicts, scores = judged(lambda first, second: float(hash_of(first, second) % 3 - 1), prompts=5)
    whole = audit(outputs, verdicts, scores)
    for records in (outputs, verdicts, scores):
        rng.shuffle(records)  # type: ignore[arg-type]
    assert audit(outputs, verdicts, scores) == whole


def hash_of(*parts: str) -> int:
    import hashlib

    return int(hashlib.sha256("|".join(parts).encode()).hexdigest()[:8], 16)


BROKEN = {
    "first": ["min_consistency", "max_one_position"],
    "second": ["min_consistency", "max_one_position"],
    "tie": ["max_ties"],
    "long": ["max_length_correlation"],
    "short": ["max_length_correlation"],
    "true": [],
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_default_limits_stop_what_is_broken_and_nothing_else(name: str) -> None:
    stage = judged(JUDGES[name])
    assert [breach.limit for breach in breaches(audit(*stage), JudgeLimits())] == BROKEN[name]
    if not BROKEN[name]:
        return check_limits(*stage, JudgeLimits(), where="here")
    with pytest.raises(JudgeError, match=rf"here: .*\n.*judge_limits\.{BROKEN[name][0]} = "):
        check_limits(*stage, JudgeLimits(), where="here")
    off = JudgeLimits(min_consistency=0, max_one_position=1, max_ties=1, max_length_correlation=1)
    return check_limits(*stage, off, where="here")


def test_a_coin_passes_the_defaults_and_can_be_stopped() -> None:
    stage = judged(lambda first, second: 1.0 if hash_of(first, second) % 2 else -1.0, prompts=60, k=6)
    check_limits(*stage, JudgeLimits(), where="here")
    for limit in (JudgeLimits(min_consistency=0.8), JudgeLimits(max_cycles=0.05)):
        with pytest.raises(JudgeError, match="judge_limits"):
            check_limits(*stage, limit, where="here")


def test_an_error_of_a_limit_shows_the_figure_examples_and_what_to_do() -> None:
    outputs = [output(f"o{n}", f"p{n}") for n in range(30)]
    verdicts = [
        Verdict(
            id=f"v{n}",
            prompt_id=f"p{n}",
            judge="j",
            first=f"o{n}",
            second=None,
            value=1.0 if n < 5 else None,
            unscored=None if n < 5 else "no verdict",
            detail='{"raw": "I would rather not say."}',
        )
        for n in range(30)
    ]
    with pytest.raises(JudgeError) as caught:
        check_limits(outputs, verdicts, score_outputs(outputs, verdicts), JudgeLimits(), where="direct iteration 2")
    said = str(caught.value)
    for part in (
        "direct iteration 2",
        "max_errors = 0.5",
        "0.833 [",
        "of 30",
        "no verdict",
        "I would rather not say.",
        "max_unscored",
    ):
        assert part in said, said
    assert said.count("rather not say") == 6, "three examples for each of the two limits"
    check_limits(
        outputs[:19], verdicts[:19], score_outputs(outputs[:19], verdicts[:19]), JudgeLimits(), where="too few to tell"
    )


def test_a_limit_is_not_broken_where_chance_could_have_done_it() -> None:
    """12 of 20 errors is above one half, but its interval is not."""
    outputs = [output(f"o{n}", f"p{n}") for n in range(20)]
    verdicts = [verdict(f"o{n}", None, 1.0 if n < 8 else None, of=f"p{n}") for n in range(20)]
    found: Audit = audit(outputs, verdicts, score_outputs(outputs, verdicts))
    assert found.errors.value == 0.6
    assert breaches(found, JudgeLimits()) == []
    assert math.isclose(found.errors.low or 0, 0.4, abs_tol=0.06)
