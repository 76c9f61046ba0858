"""Gold pairs: what a file may hold, and agreement with people as LLMBar and PandaLM count it, by hand and by law."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.errors import UsageError
from inward.judging.pairwise.comparer import Battle, Outcome
from inward.judging.pairwise.judge import Pairwise
from inward.judging.scripted import Scripted
from inward.judging.tournament.schemes import full
from inward.records import Verdict, content_id
from inward.trust.figures import NOTHING
from inward.trust.gold import GoldPair, ask, draw, read_gold
from inward.trust.people import ClassAccuracy, GoldAudit, audit_gold, people, winners

GOOD: dict[str, Any] = {"prompt": "Which?", "response_1": "this", "response_2": "that", "label": 1}


def pair(
    n: int, *, label: int | None = None, people: Sequence[int] = (), subset: str | None = None, prompt: str = ""
) -> GoldPair:
    texts = prompt or f"question {n}", f"one {n}", f"two, longer {n}"
    return GoldPair(
        id=content_id("gold", *texts),
        prompt=texts[0],
        response_1=texts[1],
        response_2=texts[2],
        label=label,
        subset=subset,
        annotators=tuple(people),
    )


@dataclass(frozen=True)
class Told:
    """A comparer that knows every pair's answer in either order: 1 or 2 for the response, 0 a tie, None no verdict."""

    said: dict[str, tuple[int | None, int | None]]
    name: str = "told"

    def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
        return [self._outcome(battle) for battle in battles]

    def _outcome(self, battle: Battle) -> Outcome:
        swapped = battle.first.startswith("two")
        winner = self.said[battle.prompt.id][swapped]
        if winner is None:
            return Outcome(value=None, error="no verdict", raw="?")
        return Outcome(value=0.0 if winner == 0 else 1.0 if (winner == 2) == swapped else -1.0, raw="")


def audited(pairs: Sequence[GoldPair], said: Sequence[tuple[int | None, int | None]]) -> GoldAudit:
    told = {pair.id: both for pair, both in zip(pairs, said, strict=True)}
    judge = Pairwise(comparer=Told(told), scheme=full, scheme_name="full")
    different = list({pair.id: pair for pair in pairs}.values())
    verdicts = ask(different, judge)
    assert winners(pairs, verdicts) == told
    return audit_gold(pairs, verdicts)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_both_kinds_of_file_are_read(tmp_path: Path) -> None:
    labelled = read_gold(write(tmp_path / "a.jsonl", GOOD | {"subset": "Natural"}, GOOD | {"label": 2, "prompt": "Who?"}))
    assert [(p.label, p.majority, p.subset, p.annotators) for p in labelled] == [(1, 1, "Natural", ()), (2, 2, None, ())]
    said = [[0, 1, 1], [0, 1, 2], [2, 2, 2], [0, 0, 1], [1, 2]]
    rows = [{k: v for k, v in GOOD.items() if k != "label"} | {"annotators": each} for each in said]
    several = read_gold(write(tmp_path / "b.jsonl", *rows))
    assert [p.majority for p in several] == [1, None, 2, 0, None]
    assert len({p.id for p in several}) == 1, "the same texts are asked about once"


def test_numbers_and_truth_values_count_as_written_and_an_empty_response_is_one(tmp_path: Path) -> None:
    (found,) = read_gold(write(tmp_path / "a.jsonl", GOOD | {"response_1": True, "response_2": 17}))
    assert (found.response_1, found.response_2) == ("True", "17")
    (empty,) = read_gold(write(tmp_path / "a.jsonl", GOOD | {"response_1": ""}))
    assert empty.response_1 == ""


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    row = {"input": "Which?", "output_1": "this", "output_2": "that", "label": 2}
    names = {"prompt": "input", "response_1": "output_1", "response_2": "output_2"}
    assert read_gold(write(tmp_path / "a.jsonl", row), names) == read_gold(write(tmp_path / "b.jsonl", GOOD | {"label": 2}))
    with pytest.raises(UsageError, match="only prompt, response_1"):
        read_gold(tmp_path / "a.jsonl", {"answer": "x"})


BROKEN: list[tuple[object, str]] = [
    ("{not json", "not valid JSON"),
    ("[1]", "each line must be an object"),
    ({k: v for k, v in GOOD.items() if k != "response_2"}, "there is no 'response_2'.*--columns"),
    (GOOD | {"prompt": ["Which?"]}, "prompt must be text, not list"),
    (GOOD | {"prompt": "\ud800"}, "surrogate"),
    (GOOD | {"label": 3}, "label must be 1 or 2, not 3"),
    (GOOD | {"label": True}, "label must be 1 or 2, not True"),
    (GOOD | {"label": "A"}, "label must be 1 or 2, not 'A'"),
    (GOOD | {"label": None}, "needs either label"),
    (GOOD | {"annotators": [1, 1, 1]}, "and not both"),
    (GOOD | {"label": None, "annotators": []}, "annotators must be a list"),
    (GOOD | {"label": None, "annotators": [1, 3]}, "annotators must be a list"),
    (GOOD | {"label": None, "annotators": "112"}, "annotators must be a list"),
    (GOOD | {"label": None, "annotators": [1, 1, 2]}, "a file holds one of the two"),
]


@pytest.mark.parametrize(("row", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_a_broken_line_is_named_with_its_file(row: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"gold\.jsonl, line 3: .*{said}"):
        read_gold(write(tmp_path / "gold.jsonl", GOOD, GOOD, row))


def test_an_empty_or_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no pairs"):
        read_gold(write(tmp_path / "gold.jsonl"))
    with pytest.raises(UsageError, match=r"none\.jsonl cannot be read"):
        read_gold(tmp_path / "none.jsonl")


def test_a_smaller_draw_is_the_beginning_of_a_larger_one_whatever_the_order() -> None:
    pairs = [pair(n, label=1) for n in range(50)]
    whole = draw(pairs, None)
    assert draw(pairs[::-1], 20) == whole[:20]
    assert sorted(p.prompt for p in whole) == sorted(p.prompt for p in pairs)
    assert whole != pairs


def test_llmbar_by_hand() -> None:
    pairs = [pair(0, label=1), pair(1, label=2), pair(2, label=1), pair(3, label=2), pair(4, label=1)]
    found = audited(pairs, [(1, 1), (2, 1), (0, 1), (None, 2), (None, None)])
    figures = found.labels["all"]
    assert (figures.accuracy_all.value, figures.accuracy_all.n) == ((2 + 1 + 1.5 + 1 + 0) / 10, 10)
    assert (figures.accuracy_scored.value, figures.accuracy_scored.n) == (5.5 / 7, 7)
    assert (figures.agreement.value, figures.agreement.n) == (1 / 3, 3), "two failures do not agree with each other"
    assert (found.errors.value, found.errors.n, found.reasons) == (3 / 10, 10, {"no verdict": 3})
    assert (found.ties.value, found.ties.n) == (1 / 7, 7)
    assert (found.consistency.value, found.consistency.n) == (1 / 3, 3)
    assert (found.longer_wins.value, found.longer_wins.n) == (2 / 6, 6)
    assert found.longer_labels["all"].accuracy_all.value == 2 / 5
    assert found.classes is found.people is None


def test_subsets_count_the_same_in_their_mean() -> None:
    names = ["Natural"] * 4 + ["Adversarial/A"] * 2 + ["Adversarial/B"]
    pairs = [pair(n, label=1, subset=name) for n, name in enumerate(names)]
    found = audited(pairs, [(1, 1)] * 4 + [(1, 2), (2, 2)] + [(2, 2)]).labels
    values = {name: (row.pairs, row.accuracy_all.value, row.agreement.value) for name, row in found.items()}
    assert values == {
        "all": (7, 9 / 14, 6 / 7),
        "Adversarial/A": (2, 1 / 4, 1 / 2),
        "Adversarial/B": (1, 0.0, 1.0),
        "Natural": (4, 1.0, 1.0),
        "mean of subsets": (7, (1 / 4 + 0 + 1) / 3, (1 / 2 + 1 + 1) / 3),
        "mean of Adversarial": (3, 1 / 8, 3 / 4),
    }


def test_pandalm_by_hand() -> None:
    truth = [(1, 1, 2), (1, 1, 1), (2, 2, 0), (2, 2, 2), (0, 0, 0), (0, 0, 1), (1, 1, 1), (0, 1, 2)]
    said = [(1, 1), (1, 2), (2, 2), (0, 2), (0, 0), (1, 1), (None, 1), (1, 1)]
    found = audited([pair(n, people=each) for n, each in enumerate(truth)], said)
    assert found.no_majority == 1
    assert (found.classes and found.classes.pairs) == 7
    # said: 1, tie (contradiction), 2, tie, 0, 1, unscored; truth: 1, 1, 2, 2, 0, 0, 1
    precision = (1 / 3 + 1 / 2 + 1 / 1) / 3
    recall_scored, recall_all = (1 / 2 + 1 / 2 + 1 / 2) / 3, (1 / 2 + 1 / 3 + 1 / 2) / 3
    figures = found.classes
    assert figures is not None
    assert figures.accuracy_all.value == pytest.approx(3 / 7)
    assert figures.accuracy_scored.value == pytest.approx(3 / 6)
    assert figures.precision.value == pytest.approx(precision)
    assert figures.recall_scored.value == pytest.approx(recall_scored)
    assert figures.recall_all.value == pytest.approx(recall_all)
    f1 = [2 * p * r / (p + r) for p, r in ((1 / 3, 1 / 2), (1 / 2, 1 / 2), (1.0, 1 / 2))]
    assert figures.f1_scored.value == pytest.approx(sum(f1) / 3)
    assert (figures.accuracy_all.n, figures.accuracy_scored.n) == (7, 6)
    assert found.labels == {}


def test_the_agreement_of_people_by_hand() -> None:
    rows = [(1, 1, 1), (1, 1, 2), (2, 2, 2), (2, 1, 2), (0, 0, 0)]
    found = people([pair(n, people=each) for n, each in enumerate(rows)])
    assert found is not None
    assert (found.people, found.agreement.value, found.agreement.n) == (3, 11 / 15, 15)
    one_two = (4 / 5 - 9 / 25) / (1 - 9 / 25)  # said 1, 2, 0: (2, 2, 1) and (3, 1, 1) times
    one_three = (4 / 5 - 9 / 25) / (1 - 9 / 25)
    two_three = (3 / 5 - 7 / 25) / (1 - 7 / 25)
    assert found.kappa == pytest.approx((one_two + one_three + two_three) / 3)
    assert people([pair(0, people=(1,))]) is None


def test_nothing_scored_is_undefined_not_zero() -> None:
    labels = audited([pair(n, label=1) for n in range(3)], [(None, None)] * 3).labels["all"]
    assert (labels.accuracy_all.value, labels.accuracy_scored, labels.agreement) == (0.0, NOTHING, NOTHING)
    classes = audited([pair(n, people=(1, 1, 0)) for n in range(3)], [(None, None)] * 3).classes
    assert classes is not None
    assert classes.accuracy_scored == classes.precision == classes.recall_scored == classes.f1_scored == NOTHING
    assert classes.accuracy_all.value == 0.0


def figures(found: ClassAccuracy) -> list[float | None]:
    rows = (found.accuracy_all, found.accuracy_scored, found.precision, found.recall_all, found.f1_all, found.f1_scored)
    return [row.value for row in rows]


def test_a_perfect_judge_has_one_and_a_coin_one_half() -> None:
    rng = random.Random(0)
    labelled = [pair(n, label=rng.choice((1, 2))) for n in range(400)]
    several = [pair(n, people=[rng.choice((0, 1, 2))] * 3) for n in range(400)]
    perfect = audited(labelled, [(p.label, p.label) for p in labelled])
    assert (perfect.labels["all"].accuracy_all.value, perfect.labels["all"].agreement.value) == (1.0, 1.0)
    classes = audited(several, [(p.majority, p.majority) for p in several]).classes
    assert classes is not None
    assert figures(classes) == [1.0] * 6
    coin = audited(labelled, [(rng.choice((1, 2)), rng.choice((1, 2))) for _ in labelled]).labels["all"]
    assert coin.accuracy_all.value == pytest.approx(0.5, abs=0.05)
    assert coin.agreement.value == pytest.approx(0.5, abs=0.07)
    assert coin.accuracy_all.low is not None
    assert coin.accuracy_all.high is not None
    assert coin.accuracy_all.low < 0.5 < coin.accuracy_all.high


def test_a_judge_that_goes_by_position_is_right_half_the_time_and_never_agrees() -> None:
    pairs = [pair(n, label=1 + n % 2) for n in range(100)]
    found = audited(pairs, [(1, 2)] * 100)
    assert (found.labels["all"].accuracy_all.value, found.labels["all"].agreement.value) == (0.5, 0.0)
    assert (found.first_position.value, found.consistency.value) == (1.0, 0.0)
    several = audited([pair(n, people=(1 + n % 2,) * 3) for n in range(100)], [(1, 2)] * 100).classes
    assert several is not None
    assert several.accuracy_all.value == 0.0, "two orders that contradict each other are a tie"


WINNERS = st.sampled_from((0, 1, 2, None))


@given(st.lists(st.tuples(WINNERS, WINNERS, st.integers(0, 2)), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_pairs_and_verdicts_does_not_matter(rows: list[Any], rng: random.Random) -> None:
    pairs = [pair(n, people=(truth, truth, 1), prompt=f"q{n % 3}") for n, (_, _, truth) in enumerate(rows)]
    told = Told({p.id: (a, b) for p, (a, b, _) in zip(pairs, rows, strict=True)})
    verdicts = ask(pairs, Pairwise(comparer=told, scheme=full, scheme_name="full"))
    whole = audit_gold(pairs, verdicts)
    rng.shuffle(pairs)
    rng.shuffle(verdicts)
    assert audit_gold(pairs, verdicts) == whole
    again = ask(pairs, Pairwise(comparer=told, scheme=full, scheme_name="full"))
    assert sorted(again, key=by_id) == sorted(verdicts, key=by_id)


def by_id(verdict: Verdict) -> str:
    return verdict.id


def pointwise(score: Callable[[str, str], float], failure_rate: float = 0.0) -> Scripted:
    return Scripted(score=score, failure_rate=failure_rate)


def test_a_judge_that_scores_one_by_one_has_no_position() -> None:
    pairs = [pair(n, label=2) for n in range(20)]
    found = audit_gold(pairs, ask(pairs, pointwise(lambda _, response: len(response))))
    assert found.labels["all"].accuracy_all.value == found.longer_labels["all"].accuracy_all.value == 1.0
    assert found.labels["all"].agreement == found.consistency == found.first_position == NOTHING
    even = audit_gold(pairs, ask(pairs, pointwise(lambda *_: 0.25)))
    assert even.labels["all"].accuracy_all.value == 0.5, "equal scores are a tie, which counts one half"


def test_what_a_judge_leaves_unscored_is_never_right() -> None:
    pairs = [pair(n, label=2) for n in range(200)]
    found = audit_gold(pairs, ask(pairs, pointwise(lambda _, response: len(response), failure_rate=0.3)))
    assert found.labels["all"].accuracy_scored.value == 1.0
    assert found.errors.value == pytest.approx(0.3, abs=0.06)
    assert found.labels["all"].accuracy_all.value == pytest.approx(0.7**2, abs=0.08)


def test_equal_texts_cannot_be_compared_and_rows_with_the_same_texts_each_count() -> None:
    same = GoldPair(id="same", prompt="q", response_1="x", response_2="x", label=1)
    other = pair(1, label=1)
    again = GoldPair(**{**{name: getattr(other, name) for name in GoldPair.__slots__}, "label": 2})
    told = Told({other.id: (1, 1)})
    found = audit_gold([same, other, again], ask([same, other], Pairwise(comparer=told, scheme=full, scheme_name="full")))
    assert (found.pairs, found.verdicts, found.errors.value) == (3, 2, 0.0), "equal texts were never asked about"
    assert found.labels["all"].accuracy_all.value == 2 / 6
    assert found.labels["all"].accuracy_scored.value == 2 / 4
