"""Bradley-Terry strengths: closed forms, an independent optimiser, and the laws they must keep."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.stats import norm

from inward.judging.tournament.adaptive import normal_tail
from inward.judging.tournament.bradley_terry import Floats, battle_matrix, posterior, sigmoid, strengths

RNG = np.random.default_rng(7)


def loss(e_K: Floats, battles_KK: Floats, prior: float) -> float:
    difference = e_K[:, None] - e_K[None, :]
    return float((battles_KK * np.logaddexp(0, -difference)).sum() + prior / 2 * (e_K**2).sum())


def test_battle_matrix_is_the_papers() -> None:
    results = np.array([[np.nan, 1.0, 0.0], [-1.0, np.nan, 1.0], [-1.0, np.nan, np.nan]])
    # 0 beat 1 in both positions; 0 and 2 tied once and 0 won once from the second place; 1 beat 2 once, the other failed
    assert battle_matrix(results).tolist() == [[0, 2, 1], [0, 0, 1], [0, 0, 0]]


def test_two_responses_with_a_vanishing_prior_have_the_log_odds_of_their_wins() -> None:
    found = strengths(np.array([[0.0, 3.0], [1.0, 0.0]]), prior=1e-9)
    assert found[0] - found[1] == pytest.approx(math.log(3), abs=1e-7)
    assert found.sum() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("prior", [1e-4, 0.1, 1.0])
def test_an_unbeaten_response_is_finite_and_solves_its_equation(prior: float) -> None:
    found = strengths(np.array([[0.0, 2.0], [0.0, 0.0]]), prior=prior)
    expected = brentq(lambda e: 2 * sigmoid(np.float64(-2 * e)) - prior * e, 0, 100, xtol=1e-12)
    assert found == pytest.approx([expected, -expected], abs=1e-8)


def test_an_unbeaten_response_grows_without_end_as_the_prior_vanishes() -> None:
    tops = [strengths(np.array([[0.0, 2.0], [0.0, 0.0]]), prior)[0] for prior in (1, 1e-2, 1e-4, 1e-6)]
    assert all(later > earlier + 1 for earlier, later in pairwise(tops))


@pytest.mark.parametrize("prior", [1e-3, 0.4, 3.0])
def test_strengths_are_the_maximum_that_scipy_finds(prior: float) -> None:
    battles = RNG.integers(0, 3, (5, 6, 6)).astype(float)
    battles[:, np.arange(6), np.arange(6)] = 0
    found = strengths(battles, prior)
    for b_KK, e_K in zip(battles, found, strict=True):
        theirs = minimize(loss, np.zeros(6), args=(b_KK, prior), method="BFGS", options={"gtol": 1e-7})
        assert e_K == pytest.approx(theirs.x, abs=1e-4)
        assert loss(e_K, b_KK, prior) <= theirs.fun + 1e-12


def test_a_batch_gives_what_each_group_gives_alone_in_any_shape() -> None:
    battles = RNG.integers(0, 3, (2, 3, 4, 4)).astype(float)
    together = strengths(battles)
    assert together.shape == (2, 3, 4)
    assert together[1, 2] == pytest.approx(strengths(battles[1, 2]), abs=1e-12)


def test_no_battles_no_differences() -> None:
    assert strengths(np.zeros((3, 4, 4))).tolist() == [[0.0] * 4] * 3
    assert strengths(np.zeros((0, 4, 4))).shape == (0, 4)


def test_a_noise_free_chain_of_fifty_converges_under_a_tiny_prior() -> None:
    found = strengths(np.triu(np.full((50, 50), 2.0), 1), prior=1e-6)
    assert (np.diff(found) < 0).all()


def test_every_prior_keeps_the_order_of_a_full_tournament() -> None:
    first_wins = np.where(RNG.random((20, 6, 6)) < 0.5, 1.0, -1.0)
    first_wins[:, np.arange(6), np.arange(6)] = np.nan
    battles = battle_matrix(first_wins)
    wins = battles.sum(axis=2)
    for prior in (0.01, 0.4, 5.0):
        e = strengths(battles, prior)
        for e_K, wins_K in zip(e, wins, strict=True):
            assert ((e_K[:, None] > e_K[None, :] + 1e-8) == (wins_K[:, None] > wins_K[None, :])).all()


def test_the_posterior_is_the_inverse_hessian_of_its_own_likelihood() -> None:
    results = np.where(RNG.random((1, 4, 4)) < 0.7, 1.0, -1.0)
    results[:, np.arange(4), np.arange(4)] = np.nan
    found = posterior(results, prior=0.5, position_prior=2.0)

    def negative_log(theta: Floats) -> float:
        logit = theta[:4, None] - theta[None, :4] + theta[4]
        likelihood = -np.logaddexp(0, -(results[0] * logit)[~np.eye(4, dtype=bool)]).sum()
        return float(-likelihood + 0.25 * (theta[:4] ** 2).sum() + theta[4] ** 2)

    mode = np.append(found.e_GK[0], found.bias_G[0])
    theirs = minimize(negative_log, np.zeros(5), method="BFGS", options={"gtol": 1e-7})
    assert mode == pytest.approx(theirs.x, abs=1e-4)
    step, unit = 1e-4, np.eye(5)
    hessian = np.array(
        [
            [
                sum(s * t * negative_log(mode + step * (s * unit[a] + t * unit[b])) for s in (1, -1) for t in (1, -1))
                / (4 * step**2)
                for b in range(5)
            ]
            for a in range(5)
        ]
    )
    assert found.covariance_GDD[0] == pytest.approx(np.linalg.inv(hessian), abs=1e-4)
    assert found.std_GK[0] == pytest.approx(np.sqrt(np.diag(np.linalg.inv(hessian)))[:4], abs=1e-4)


def test_a_judge_that_always_prefers_the_first_shows_as_bias_and_not_as_strength() -> None:
    results = np.ones((1, 4, 4))
    results[:, np.arange(4), np.arange(4)] = np.nan
    found = posterior(results)
    assert found.bias_G[0] > 1
    assert found.e_GK[0] == pytest.approx([0] * 4, abs=1e-9)


def test_a_prior_of_zero_is_refused() -> None:
    with pytest.raises(AssertionError, match="prior must be positive"):
        strengths(np.zeros((2, 2)), prior=0.0)


def test_the_normal_tail_is_scipys() -> None:
    x = np.linspace(-8, 8, 1001)
    assert normal_tail(x) == pytest.approx(norm.sf(x), abs=1e-7)
