"""Laws of pairing: what holds for any outputs, any scores, any settings (METHOD.md steps 4 and 5)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from inward.config import PairingSettings
from inward.pairing.pair import Pairing, pair_outputs, rho_grid
from inward.records import Output, Score
from tests.build import output, score

REASONS = {
    "all outputs malformed",
    "no output scored",
    "fewer than two scored",
    "all scores equal",
    "gap below min_gap",
    "identical texts",
}


@dataclass(frozen=True)
class Stage:
    outputs: list[Output]
    scores: list[Score]


FINITE = st.floats(-1e6, 1e6)
COARSE = st.sampled_from([0.0, 1 / 3, 0.5, 1.0])  # what a verifiable judge gives: ties are the rule
LENGTHS = st.integers(1, 60)


@st.composite
def stages(draw: st.DrawFn, values: st.SearchStrategy[float] = FINITE | COARSE, *, sound: bool = False, most: int = 5) -> Stage:
    """Up to eight prompts of up to `most` outputs, each one scored, unscored or malformed (`sound`: all scored)."""
    outputs, scores = [], []
    for p in range(draw(st.integers(1, 8))):
        for k in range(draw(st.integers(1, most))):
            kind = "scored" if sound else draw(st.sampled_from(["scored", "scored", "scored", "unscored", "malformed"]))
            response = None if kind == "malformed" else "x" * draw(LENGTHS)
            made = output(f"o{p}-{k}", f"p{p}", response, thought=f"thought {p}-{k}")
            outputs.append(made)
            scores.append(score(made, draw(values) if kind == "scored" else None))
    return Stage(outputs, scores)


def settings_of(control: tuple[float | str, dict[str, float]], **others: float | str) -> PairingSettings:
    rho, bound = control
    return PairingSettings.model_validate({"rho": rho, **bound, **others})


SETTINGS = st.builds(
    settings_of,
    # Few steps, so that "auto" is quick.
    st.sampled_from([(0.0, {}), (0.1, {}), (0.5, {}), ("auto", {"rho_max": 0.03}), ("auto", {"rho_max": 0.055})]),
    thought_weight=st.sampled_from([0.0, 0.3]),
    format_errors=st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]),
    min_gap=st.sampled_from([0.0, 0.4]),
    rejected=st.sampled_from(["worst", "mu-2sigma"]),
)


def run(stage: Stage, settings: PairingSettings, seed: int = 0) -> Pairing:
    return pair_outputs(stage.outputs, stage.scores, settings, seed=seed)


@given(stages(), SETTINGS, st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_records_changes_nothing(stage, settings, seed, random) -> None:
    shuffled = Stage(random.sample(stage.outputs, len(stage.outputs)), random.sample(stage.scores, len(stage.scores)))
    assert run(shuffled, settings, seed) == run(stage, settings, seed)


@given(stages(), SETTINGS)
def test_only_scored_outputs_are_chosen_and_unscored_ones_stay_out(stage, settings) -> None:
    of = {made.id: made for made in stage.outputs}
    value = {item.output_id: item.value for item in stage.scores}
    for pair in run(stage, settings).pairs:
        chosen, rejected = of[pair.chosen_id], of[pair.rejected_id]
        assert chosen.prompt_id == rejected.prompt_id == pair.prompt_id
        assert value[chosen.id] is not None
        assert pair.chosen_score == value[chosen.id]
        assert pair.rejected_score == value[rejected.id]
        if pair.kind == "scored":
            assert rejected.response is not None
            assert chosen.text != rejected.text
            assert pair.margin is not None
            assert pair.margin >= 0
        else:
            assert rejected.response is None
            assert pair.margin is None


@given(stages(), SETTINGS)
def test_the_share_of_malformed_rejects_is_kept(stage, settings) -> None:
    pairs = run(stage, settings).pairs
    malformed = sum(pair.kind == "format_error" for pair in pairs)
    assert malformed <= Fraction(str(settings.format_errors)) * len(pairs)


@given(stages(), SETTINGS)
def test_every_prompt_gives_a_pair_or_is_counted(stage, settings) -> None:
    pairing = run(stage, settings)
    prompts = {made.prompt_id for made in stage.outputs}
    assert len({pair.prompt_id for pair in pairing.pairs}) == len(pairing.pairs)
    assert len(pairing.pairs) + sum(pairing.skipped.values()) == len(prompts)
    assert set(pairing.skipped) <= REASONS


@given(stages(), st.integers(0, 3))
def test_without_length_control_best_and_worst_raw_scores_are_paired(stage, seed) -> None:
    for pair in run(stage, PairingSettings(rho=0.0, format_errors=0.0), seed).pairs:
        values = [s.value for s in stage.scores if s.prompt_id == pair.prompt_id and s.value is not None]
        assert pair.chosen_score == max(values)
        assert pair.rejected_score == min(values)


@given(
    stages(st.integers(-50, 50).map(float)), st.sampled_from([0.0, 0.25, 0.5]), st.integers(-9, 9), st.sampled_from([0.5, 2, 7])
)
def test_shifting_and_scaling_the_scores_changes_no_pair(stage, rho, shift, scale) -> None:
    settings = PairingSettings(rho=rho)
    moved = [
        Score(
            output_id=s.output_id,
            prompt_id=s.prompt_id,
            value=None if s.value is None else scale * s.value + shift,
            unscored=s.unscored,
        )
        for s in stage.scores
    ]
    before, after = run(stage, settings), run(Stage(stage.outputs, moved), settings)
    assert [pair.id for pair in after.pairs] == [pair.id for pair in before.pairs]
    assert after.skipped == before.skipped


@given(stages(COARSE, sound=True), st.integers(0, 9))
def test_a_pair_maximises_the_length_controlled_score_as_numpy_computes_it(stage, seed) -> None:
    for pair in run(stage, PairingSettings(rho=0.5), seed).pairs:
        group = [(o, s.value) for o, s in zip(stage.outputs, stage.scores, strict=True) if o.prompt_id == pair.prompt_id]
        scores = np.array([value for _, value in group])
        lengths = np.array([len(o.response) for o, _ in group], dtype=float)
        spread = lengths.std() or 1.0
        controlled = (scores - scores.mean()) / scores.std() - 0.5 * (lengths - lengths.mean()) / spread
        at = {o.id: index for index, (o, _) in enumerate(group)}
        assert controlled[at[pair.chosen_id]] == pytest.approx(controlled.max())
        assert controlled[at[pair.rejected_id]] == pytest.approx(controlled.min())
        assert pair.margin == pytest.approx(np.ptp(controlled))


@given(stages(COARSE), st.integers(0, 5))
def test_the_whole_share_lets_every_prompt_with_something_to_choose_and_reject_pair(stage, seed) -> None:
    pairing = run(stage, PairingSettings(format_errors=1.0), seed)
    value = {item.output_id: item.value for item in stage.scores}
    usable = {o.prompt_id for o in stage.outputs if value[o.id] is not None} & {
        o.prompt_id for o in stage.outputs if o.response is None
    }
    assume(usable)
    assert {pair.prompt_id for pair in pairing.pairs if pair.kind == "format_error"} == usable


@settings_of_hypothesis(max_examples=60)
@given(
    stages(st.integers(0, 9).map(float)),
    st.sampled_from([0.02, 0.2, 0.5]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 3.0]),
    st.randoms(use_true_random=False),
)
def test_auto_is_the_smallest_rho_of_the_grid_that_keeps_the_rule(stage, rho_max, format_errors, min_gap, random) -> None:
    def excess(pairing: Pairing) -> float | None:
        """How much longer the chosen responses are on average than the rejected ones, or None without a scored pair."""
        length = {o.id: len(o.response or "") for o in stage.outputs}
        scored = [pair for pair in pairing.pairs if pair.kind == "scored"]
        return sum(length[p.chosen_id] - length[p.rejected_id] for p in scored) / len(scored) if scored else None

    def at(rho: float | str) -> Pairing:
        bound = {"rho_max": rho_max} if rho == "auto" else {}
        return run(stage, PairingSettings(rho=rho, format_errors=format_errors, min_gap=min_gap, **bound))

    auto = at("auto")
    tried = {rho: excess(at(rho)) for rho in rho_grid(rho_max)}
    keeping = [rho for rho, longer in tried.items() if longer is not None and longer <= 0]
    scoring = [rho for rho, longer in tried.items() if longer is not None]
    assert auto.rho == (keeping[0] if keeping else scoring[-1] if scoring else 0.0)
    assert (auto.pairs, auto.skipped, auto.inverted) == ((fixed := at(auto.rho)).pairs, fixed.skipped, fixed.inverted)
    random.shuffle(stage.outputs)
    random.shuffle(stage.scores)
    assert at("auto") == auto


RHOS = st.sampled_from([0.0, 0.2, 0.5])


@given(stages(), RHOS, st.sampled_from([0.0, 0.3]), st.integers(0, 3))
def test_of_up_to_five_outputs_the_worst_is_the_nearest_to_two_deviations_below(stage, rho, format_errors, seed) -> None:
    """None of n numbers is more than sqrt(n - 1) standard deviations below their mean."""
    worst, near = (
        run(stage, PairingSettings(rho=rho, format_errors=format_errors, rejected=rejected), seed)
        for rejected in ("worst", "mu-2sigma")
    )
    assert near == worst


@given(stages(FINITE | COARSE | st.integers(0, 50).map(float), sound=True, most=24), RHOS)
def test_the_rejected_output_is_the_nearest_to_two_deviations_below_as_numpy_computes_it(stage, rho) -> None:
    settings = PairingSettings(rho=rho, rejected="mu-2sigma")
    pairing = run(stage, settings)
    worst = {pair.prompt_id: pair for pair in run(stage, PairingSettings(rho=rho)).pairs}
    for pair in pairing.pairs:
        assert pair.chosen_id == worst[pair.prompt_id].chosen_id, "the best stays the chosen one"
        group = [(o, s.value) for o, s in zip(stage.outputs, stage.scores, strict=True) if o.prompt_id == pair.prompt_id]
        scores = np.array([value for _, value in group])
        lengths = np.array([len(o.response) for o, _ in group], dtype=float)
        s_K = (scores - scores.mean()) / scores.std() - rho * (lengths - lengths.mean()) / (lengths.std() or 1.0)
        at = {o.id: index for index, (o, _) in enumerate(group)}
        best, rejected = at[pair.chosen_id], at[pair.rejected_id]
        distance_K = np.abs(s_K - (s_K.mean() - 2 * s_K.std()))
        worse_K = (s_K < s_K[best] - 1e-7) | (scores < scores[best])
        assert pair.margin == pytest.approx(s_K[best] - s_K[rejected], abs=1e-6)
        assert distance_K[rejected] == pytest.approx(distance_K[worse_K].min(), abs=1e-6)
        assert (s_K[rejected], scores[rejected]) < (s_K[best] + 1e-7, scores[best] + 1e-7)
    assert {pair.prompt_id for pair in pairing.pairs} == set(worst), "either rule finds a pair where there is one"
