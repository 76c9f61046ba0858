"""What judging asks for at most: no tournament goes beyond the bound, and the paper's costs what it says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.config import CascadeJudge, EndpointSettings, PairwiseJudge, PanelJudge, RewardModelJudge, VerifiableJudge
from inward.config.combined import Route, RoutedJudge
from inward.evaluation.win_rates import battles_against
from inward.judging.judge import Group
from inward.judging.most import Judged, most_asked, most_asked_against
from inward.judging.pairwise.comparer import Battle, Outcome
from inward.judging.pairwise.judge import Pairwise, most_battles
from inward.judging.spending import Spending
from inward.judging.tournament.adaptive import adaptive
from inward.judging.tournament.run import run_tournament
from inward.judging.tournament.schemes import full, in_pairs
from inward.records import Prompt, content_id
from tests.build import output

JUDGED = Judged(prompts=10, k=8, prompt_tokens=100, response_tokens=1000)
ENDPOINT = EndpointSettings(base_url="http://localhost:1/v1", model="m", price_in=1.0, price_out=2.0)


class Coin:
    """A comparer that cannot make up its mind, so that a tournament asks for all that it may; it notes each battle."""

    name = "coin"

    def __init__(self) -> None:
        self.battles: list[Battle] = []

    def compare(self, battles: list[Battle]) -> list[Outcome]:
        self.battles += battles
        return [Outcome(value=1.0 if int(content_id(b.first, b.second), 16) % 2 else -1.0) for b in battles]

    def costs(self) -> Spending:
        return Spending()


def pairwise(**keys: object) -> PairwiseJudge:
    return PairwiseJudge.model_validate({"kind": "pairwise", "endpoint": ENDPOINT.model_dump()} | keys)


@settings(max_examples=40)
@given(k=st.integers(2, 12), name=st.text("abc", max_size=3), both=st.booleans())
def test_no_tournament_asks_for_more_battles_than_the_bound(k: int, name: str, both: bool) -> None:
    judge = pairwise(confidence=0.999999, verdict="probability", both_orders=both)
    scheme = adaptive(confidence=0.999999, prior=judge.prior, paired=both)
    group = Group(prompt=Prompt(id="p", text="Which?", source="test"), responses=tuple(f"{name}{n}" for n in range(k)))
    coin = Coin()
    run_tournament([group], coin, in_pairs(scheme) if both else scheme)
    assert len(coin.battles) <= most_battles(judge, k)
    everything = Coin()
    run_tournament([group], everything, full)
    assert len(everything.battles) == most_battles(pairwise(scheme="full"), k) == k * (k - 1)


def test_the_bound_is_no_larger_than_it_must_be() -> None:
    coin = Coin()
    group = Group(prompt=Prompt(id="p", text="Which?", source="test"), responses=tuple(f"r{n}" for n in range(12)))
    run_tournament([group], coin, adaptive(confidence=0.999999))
    assert len(coin.battles) == most_battles(pairwise(), 12) == 48


def test_a_judge_behind_an_endpoint_has_its_price() -> None:
    (asked,) = most_asked(pairwise(scheme="full", max_tokens=500), JUDGED, None)
    assert (asked.judge, asked.calls, asked.unit) == ("judge (pairwise)", 10 * 56, "battles")
    assert asked.written == 560 * 500
    assert 560 * 2100 < asked.read < 560 * (2100 + 1000)  # question and answers, and the task around them
    assert asked.money == pytest.approx((asked.read + 2 * asked.written) / 1e6)
    (quick,) = most_asked(pairwise(scheme="full", verdict="probability"), JUDGED, None)
    assert quick.written == 560


def test_a_reward_model_reads_each_response_with_its_prompt_up_to_its_limit() -> None:
    (asked,) = most_asked(RewardModelJudge(kind="reward_model", path="some/model"), JUDGED, None)
    assert (asked.calls, asked.unit, asked.read, asked.written) == (80, "responses", 80 * 1100, 0)
    (cut,) = most_asked(RewardModelJudge(kind="reward_model", path="some/model", max_tokens=512), JUDGED, None)
    assert cut.read == 80 * 512


def test_judges_made_of_judges_are_bounded_part_by_part() -> None:
    first, then = VerifiableJudge(kind="verifiable"), pairwise()
    cascade = CascadeJudge(kind="cascade", first=first, then=then)
    assert [(a.judge, a.calls) for a in most_asked(cascade, JUDGED, None)] == [
        ("judge.first (verifiable)", 80),
        ("judge.then (pairwise)", 10 * 32),
    ]
    panel = PanelJudge(kind="panel", members=(first, VerifiableJudge(kind="verifiable", strictness="loose")))
    assert [a.calls for a in most_asked(panel, JUDGED, None)] == [80, 80]


def test_routes_are_counted_on_the_prompts_that_take_them() -> None:
    judge = RoutedJudge(
        kind="routed",
        routes=(Route(verifiable=True, judge=VerifiableJudge(kind="verifiable")), Route(source="other", judge=pairwise())),
        otherwise=VerifiableJudge(kind="verifiable", strictness="loose"),
    )
    prompts = [Prompt(id=str(n), text=str(n), source="mine", answers=("1",) if n < 7 else ()) for n in range(10)]
    assert [a.calls for a in most_asked(judge, JUDGED, prompts)] == [56, 0, 24]
    assert [a.calls for a in most_asked(judge, JUDGED, None)] == [80, 320, 80]  # nobody knows: each route may take all


@pytest.mark.parametrize(("responses", "answers"), [(1, 1), (2, 3), (4, 3), (4, 4)])
def test_battles_with_a_baseline_stay_within_their_bound(responses: int, answers: int) -> None:
    prompt = Prompt(id="p", text="Which?", source="test")
    outputs = [output(f"p.{n}", response=f"response {n}") for n in range(responses)]
    coin = Coin()
    judge = Pairwise(comparer=coin, scheme=full, scheme_name="full")
    battles_against([prompt], outputs, {"p": tuple(f"answer {n}" for n in range(answers))}, judge)
    judged = Judged(prompts=1, k=responses, prompt_tokens=1, response_tokens=1)
    (asked,) = most_asked_against(pairwise(), judged, answers)
    assert len(coin.battles) == 2 * math.lcm(responses, answers)
    assert len(coin.battles) <= asked.calls
