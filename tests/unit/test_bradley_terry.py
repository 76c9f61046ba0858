"""The posterior of strengths and position bias: closed forms, an independent optimiser, and the laws it must keep."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import brentq, minimize
from scipy.special import expit

from inward.judging.tournament.bradley_terry import DECIMALS, posterior
from inward.statistics import Floats

RNG = np.random.default_rng(7)
EXACT = 1.01 * 10**-DECIMALS


def without_own(results_GKK: Floats) -> Floats:
    """Return the results without battles of a response against itself."""
    k = results_GKK.shape[-1]
    return np.where(np.eye(k, dtype=bool), np.nan, results_GKK)


def results(wins: list[list[float]]) -> Floats:
    return np.array(wins, dtype=float)[None]


@st.composite
def any_results(draw: st.DrawFn, max_k: int = 6) -> Floats:
    """Results of 1 to 3 groups of 2 to `max_k` responses: wins, losses, ties, errors and battles never fought."""
    groups, k = draw(st.integers(1, 3)), draw(st.integers(2, max_k))
    return without_own(draw(hnp.arrays(np.float64, (groups, k, k), elements=st.sampled_from([1.0, -1.0, 0.0, math.nan]))))


PRIORS = st.sampled_from([1e-2, 0.4, 3.0])
POSITION_PRIORS = st.sampled_from([None, 0.3, 1.0])


def negative_log_posterior(
    theta: Floats, results_KK: Floats, prior: float, position_prior: float | None
) -> tuple[float, Floats]:
    """Return it and its gradient as they are written in the module's first lines, battle by battle."""
    k = len(results_KK)
    value, gradient = prior / 2 * float((theta[:k] ** 2).sum()), np.append(prior * theta[:k], 0.0)
    bias = 0.0 if position_prior is None else theta[k]
    if position_prior is not None:
        value, gradient[k] = value + position_prior / 2 * bias**2, position_prior * bias
    for m, n in zip(*np.nonzero(np.isfinite(results_KK)), strict=True):
        logit, share = theta[m] - theta[n] + bias, (1 + results_KK[m, n]) / 2
        value += share * np.logaddexp(0, -logit) + (1 - share) * np.logaddexp(0, logit)
        slope = expit(logit) - share
        gradient[m] += slope
        gradient[n] -= slope
        gradient[k] += 0.0 if position_prior is None else slope
    return float(value), gradient


@settings(max_examples=60, deadline=None)
@given(any_results(), PRIORS, POSITION_PRIORS)
def test_the_mode_is_the_optimum_that_scipy_finds(results_GKK: Floats, prior: float, position_prior: float | None) -> None:
    fitted = posterior(results_GKK, prior, position_prior)
    for results_KK, e_K, bias in zip(results_GKK, fitted.e_GK, fitted.bias_G, strict=True):
        theta, arguments = np.zeros(len(results_KK) + 1), (results_KK, prior, position_prior)
        reference = minimize(
            negative_log_posterior, theta, args=arguments, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 500}
        )
        _, gradient = negative_log_posterior(reference.x, *arguments)
        assert np.abs(gradient).max() < 1e-7, "the reference is not at its optimum"
        assert np.append(e_K, bias) == pytest.approx(reference.x, abs=EXACT + 1e-7 / prior)


@settings(max_examples=60, deadline=None)
@given(any_results(), PRIORS, POSITION_PRIORS, st.randoms(use_true_random=False))
def test_another_order_of_the_responses_gives_the_same_strengths_in_that_order(
    results_GKK: Floats, prior: float, position_prior: float | None, random: object
) -> None:
    k = results_GKK.shape[-1]
    order = random.sample(range(k), k)  # type: ignore[attr-defined]
    fitted = posterior(results_GKK, prior, position_prior)
    permuted = posterior(results_GKK[:, order][:, :, order], prior, position_prior)
    assert permuted.e_GK == pytest.approx(fitted.e_GK[:, order], abs=EXACT)
    assert permuted.bias_G == pytest.approx(fitted.bias_G, abs=EXACT)
    both = [*order, k]
    assert permuted.covariance_GDD == pytest.approx(fitted.covariance_GDD[:, both][:, :, both], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(any_results(), PRIORS, POSITION_PRIORS)
def test_a_judge_of_the_opposite_taste_gives_the_opposite_of_everything(
    results_GKK: Floats, prior: float, position_prior: float | None
) -> None:
    fitted, opposite = posterior(results_GKK, prior, position_prior), posterior(-results_GKK, prior, position_prior)
    assert opposite.e_GK == pytest.approx(-fitted.e_GK, abs=EXACT)
    assert opposite.bias_G == pytest.approx(-fitted.bias_G, abs=EXACT)
    assert fitted.e_GK.sum(axis=1) == pytest.approx(0, abs=10 * EXACT)


@settings(max_examples=60, deadline=None)
@given(any_results(), PRIORS)
def test_verdicts_taken_in_both_orders_leave_no_position_bias(results_GKK: Floats, prior: float) -> None:
    upper = np.where(np.tri(results_GKK.shape[-1], dtype=bool), 0.0, np.nan_to_num(results_GKK))
    fought = np.where(np.tri(results_GKK.shape[-1], dtype=bool), False, np.isfinite(results_GKK))
    both = np.where(fought | fought.swapaxes(1, 2), upper - upper.swapaxes(1, 2), np.nan)
    fitted = posterior(both, prior)
    assert fitted.bias_G.tolist() == [0.0] * len(both)
    assert fitted.e_GK == pytest.approx(posterior(both, prior, position_prior=None).e_GK, abs=EXACT)


@settings(max_examples=60, deadline=None)
@given(any_results(), PRIORS, st.data())
def test_a_tie_pulls_strengths_together(results_GKK: Floats, prior: float, data: st.DataObject) -> None:
    """Without a position bias, that is: a tie also tells that it paid little to stand first, which may move others apart."""
    first, second = data.draw(st.permutations(range(results_GKK.shape[-1])))[:2]
    leads = []
    for value in (math.nan, 0.0):
        results_GKK[:, first, second] = value
        e_GK = posterior(results_GKK, prior, position_prior=None).e_GK
        leads.append(np.abs(e_GK[:, first] - e_GK[:, second]))
    assert (leads[1] <= leads[0] + 2 * EXACT).all()
    assert (leads[1] < leads[0])[leads[0] > 1e-3].all()


@settings(max_examples=30, deadline=None)
@given(any_results(), PRIORS)
def test_the_papers_fit_does_not_know_ties(results_GKK: Floats, prior: float) -> None:
    """Its likelihood is that of B_mn = [r_mn = 1] + [r_nm = -1] (METHOD.md step 3)."""
    paper = posterior(np.where(results_GKK == 0, np.nan, results_GKK), prior, position_prior=None)
    for results_KK, e_K in zip(results_GKK, paper.e_GK, strict=True):
        battles_KK = (results_KK == 1).astype(float) + (results_KK == -1).T
        p_KK = expit(e_K[:, None] - e_K[None, :])
        surprise_KK = battles_KK * (1 - p_KK)
        assert surprise_KK.sum(axis=1) - surprise_KK.sum(axis=0) - prior * e_K == pytest.approx(0, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(any_results(), PRIORS, POSITION_PRIORS)
def test_padding_and_company_change_nothing(results_GKK: Floats, prior: float, position_prior: float | None) -> None:
    k = results_GKK.shape[-1]
    padded = np.full((len(results_GKK), k + 2, k + 2), np.nan)
    padded[:, :k, :k] = results_GKK
    fitted, together = posterior(results_GKK[:1], prior, position_prior), posterior(padded, prior, position_prior)
    assert together.e_GK[0, :k] == pytest.approx(fitted.e_GK[0], abs=EXACT)
    assert together.e_GK[:, k:].tolist() == [[0.0, 0.0]] * len(padded)


def test_two_responses_with_a_vanishing_prior_have_the_log_odds_of_their_wins() -> None:
    """A win and a tie are one and a half wins against half a one."""
    e_K = posterior(results([[math.nan, 1], [0, math.nan]]), prior=1e-9, position_prior=None).e_GK[0]
    assert e_K[0] - e_K[1] == pytest.approx(math.log(3), abs=2 * EXACT)


@pytest.mark.parametrize("prior", [1e-4, 0.1, 1.0])
def test_an_unbeaten_response_is_finite_and_solves_its_equation(prior: float) -> None:
    e_K = posterior(results([[math.nan, 1], [-1, math.nan]]), prior).e_GK[0]
    expected = brentq(lambda e: 2 * expit(-2 * e) - prior * e, 0, 100, xtol=1e-12)
    assert e_K == pytest.approx([expected, -expected], abs=EXACT)


def test_an_unbeaten_response_grows_without_end_as_the_prior_vanishes() -> None:
    tops = [posterior(results([[math.nan, 1], [-1, math.nan]]), prior).e_GK[0, 0] for prior in (1, 1e-2, 1e-4, 1e-6)]
    assert all(later > earlier + 1 for earlier, later in pairwise(tops))


def test_no_battles_no_differences() -> None:
    assert posterior(np.full((3, 4, 4), np.nan)).e_GK.tolist() == [[0.0] * 4] * 3
    assert posterior(np.full((0, 4, 4), np.nan)).e_GK.shape == (0, 4)


def test_a_noise_free_chain_of_fifty_converges_under_a_tiny_prior() -> None:
    e_K = posterior(without_own(np.where(np.tri(50) > 0, -1.0, 1.0)[None]), prior=1e-6).e_GK[0]
    assert (np.diff(e_K) < 0).all()


def test_every_prior_keeps_the_papers_order_of_a_full_tournament() -> None:
    decided = without_own(np.where(RNG.random((20, 6, 6)) < 0.5, 1.0, -1.0))
    wins_GK = (decided == 1).sum(axis=2) + (decided == -1).sum(axis=1)
    for prior, position_prior in product((0.01, 0.4, 5.0), (None, 1.0)):
        e_GK = posterior(decided, prior, position_prior).e_GK
        assert ((e_GK[:, :, None] > e_GK[:, None, :]) == (wins_GK[:, :, None] > wins_GK[:, None, :])).all()


def test_the_covariance_is_the_inverse_hessian_of_its_own_likelihood() -> None:
    drawn = without_own(RNG.choice([1.0, 1.0, -1.0, 0.0], (1, 4, 4)))
    fitted = posterior(drawn, prior=0.5, position_prior=2.0)
    mode, step, unit = np.append(fitted.e_GK[0], fitted.bias_G[0]), 1e-4, np.eye(5)
    gradients = [
        [negative_log_posterior(mode + sign * step * unit[d], drawn[0], 0.5, 2.0)[1] for sign in (1, -1)] for d in range(5)
    ]
    hessian = np.array([(up - down) / (2 * step) for up, down in gradients])
    assert fitted.covariance_GDD[0] == pytest.approx(np.linalg.inv(hessian), abs=1e-6)


def test_a_judge_that_always_prefers_the_first_shows_as_bias_and_not_as_strength() -> None:
    """The strengths are equal to the last bit: what rounding left of them would else be a best and a worst response."""
    for k in (3, 4, 8, 9):
        fitted = posterior(without_own(np.ones((1, k, k))))
        assert fitted.bias_G[0] > 1
        assert fitted.e_GK[0].tolist() == [0.0] * k


def test_a_prior_of_zero_is_refused() -> None:
    with pytest.raises(AssertionError, match="prior must be positive"):
        posterior(np.full((1, 2, 2), np.nan), prior=0.0)
