"""The default tournament asks only what is needed to know the best and the worst response (the paper asks every battle).

The question is which response has the best and which the worst length-controlled score s = N(e) - rho * N(length) (METHOD.md
step 4), where e are Bradley-Terry strengths. N needs the spread of all K, so every response is placed roughly first: in the
opening round, a ring, each fights once from either position. After that, every round does this:

1. The Laplace posterior of all strengths and of the position bias is fitted to each group's battles so far
   (`bradley_terry.posterior`, by whose mode the responses are scored in the end). With mean and spread of e held at the mode, s
   is linear in e, so the lead of the best response i over another j is normal with some mean m_j and deviation d_j. What
   choosing i is expected to lose to j is L_j = d_j (phi(z_j) - z_j Phi(-z_j)), with z_j = m_j / d_j.
2. A group is finished when, at the top as at the bottom, the sum of L_j over all j is at most (1 - confidence) of the gap
   between best and worst. The sum counts overlapping losses twice, so the true share is smaller. `limit` ends it in any case.
3. Otherwise the battle is asked that takes most off the sum of L_j. As dL_j / d(d_j^2) = phi(z_j) / (2 d_j), and a battle x
   whose result has variance v takes v (x'C c_j)^2 / (1 + v x'C x) off d_j^2 = c_j'C c_j (C is the covariance; this is one
   Kalman step), that is the battle with the largest sum of the products. Of its two orders the one is asked in which the
   response stands first that did so less often.

G groups, K responses, D = K + 1 unknowns. Groups do not influence each other, so batches may be cut in any way.

For a judge with one verdict for both orders of a pair (`schemes.in_pairs`) the opening round pairs the responses off instead of
making a ring. Such a verdict stands in the results twice, in both directions, so that the posterior is surer than it should be.
It takes a higher confidence to come to the same loss: `CONFIDENCE_IN_PAIRS`, from the simulation of benchmarks/judging.py.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit, ndtr

from inward.judging.length_control import length_controlled
from inward.judging.tournament.bradley_terry import PRIOR, Posterior, posterior
from inward.judging.tournament.schemes import indices, no_battles
from inward.judging.tournament.state import Battles, Bools, Indices, Scheme, TournamentState
from inward.statistics import Counts, Floats, std_rows

CONFIDENCE = 0.87
CONFIDENCE_IN_PAIRS = 0.92
LIMIT = 4.0
TIE = 1e-7
"""Relative: of two values that differ by less, the first counts as the larger one."""


def adaptive(
    *,
    rho: float = 0.0,
    confidence: float = CONFIDENCE,
    limit: float = LIMIT,
    prior: float = PRIOR,
    paired: bool = False,
) -> Scheme:
    """Return the scheme. `limit` is battles per response; `paired` opens with pairs in the place of a ring."""

    def scheme(state: TournamentState) -> Battles:
        counts_G = state.present_GK.sum(axis=1)
        left_G = np.floor(limit * counts_G).astype(np.intp) - state.fought_G
        if state.round == 0:
            return _opening(state.present_GK, left_G, step=2 if paired else 1)
        open_G = np.flatnonzero((left_G > 0) & ~state.asked_GKK.all(axis=(1, 2)))
        if not open_G.size:
            return no_battles()
        part = state.of_groups(open_G)
        fitted = posterior(part.results_GKK, prior)
        group, first, second = indices(_next(part, fitted, left_G[open_G], rho, confidence))
        return open_G[group], first, second

    return scheme


def _opening(present_GK: Bools, left_G: Counts, *, step: int) -> Battles:
    """Return the battles of each response, or of every second one, with the next, the last one's being with the first."""
    counts_G = present_GK.sum(axis=1)
    group, first = np.nonzero(present_GK & (counts_G > 1)[:, None])
    fits = (first < left_G[group]) & (first % step == 0)
    group, first = group[fits], first[fits]
    return group, first, (first + 1) % counts_G[group]


def _next(state: TournamentState, fitted: Posterior, left_G: Counts, rho: float, confidence: float) -> Bools:
    """Return a mask (G, K, K) of the battles to ask: one for the top and one for the bottom, no more than are left."""
    taken_GKK, left_G = state.asked_GKK.copy(), left_G.copy()
    for sign in (1.0, -1.0):
        leader_G, slope_GK, share_G = _losses(state, fitted, rho, sign)
        asks_G = np.flatnonzero((share_G > 1 - confidence) & (left_G > 0) & ~taken_GKK.all(axis=(1, 2)))
        gain_GKK = _gains(fitted, leader_G, slope_GK)
        gain_GKK[taken_GKK] = -np.inf
        first, second = np.unravel_index(_largest(gain_GKK.reshape(len(gain_GKK), -1)), gain_GKK.shape[1:])
        first, second = _turned(taken_GKK[asks_G], first[asks_G], second[asks_G])
        taken_GKK[asks_G, first, second] = True
        left_G[asks_G] -= 1
    return taken_GKK & ~state.asked_GKK


def _largest(values_GN: Floats) -> Indices:
    """Return where each row first reaches its maximum up to `TIE`: rounding, which depends on padding, must decide nothing."""
    top_G1 = values_GN.max(axis=1, keepdims=True)
    tolerance_G1 = TIE * np.where(np.isfinite(top_G1), np.abs(top_G1), 0.0)
    return np.asarray((values_GN >= top_G1 - tolerance_G1).argmax(axis=1), dtype=np.intp)


def _turned(taken_GKK: Bools, first_G: Indices, second_G: Indices) -> tuple[Indices, Indices]:
    """Return the battles with the response first that stood first less often, where that order is still to be asked."""
    groups = np.arange(len(first_G))
    lean_GK = taken_GKK.sum(axis=2) - taken_GKK.sum(axis=1)
    turn_G = (lean_GK[groups, first_G] > lean_GK[groups, second_G]) & ~taken_GKK[groups, second_G, first_G]
    return np.where(turn_G, second_G, first_G), np.where(turn_G, first_G, second_G)


def _losses(state: TournamentState, fitted: Posterior, rho: float, sign: float) -> tuple[Indices, Floats, Floats]:
    """Return the leader i (the last one for sign -1), the slope of L_j in d_j^2, and the sum of L_j as a share of the gap."""
    s_GK = sign * length_controlled(fitted.e_GK, state.lengths_GK, state.copies_GK, rho)
    std_G1 = std_rows(fitted.e_GK, state.copies_GK)
    groups, leader_G = np.arange(len(s_GK)), _largest(np.where(state.present_GK, s_GK, -np.inf))
    rival_GK = state.present_GK.copy()
    rival_GK[groups, leader_G] = False
    lead_GK = np.where(rival_GK, s_GK[groups, leader_G, None] - s_GK, 0.0) * np.where(std_G1 > 0, std_G1, 1.0)
    covariance_GDD = fitted.covariance_GDD
    variance_GK = np.diagonal(covariance_GDD, axis1=1, axis2=2)[:, :-1]
    shared_GK = covariance_GDD[groups, leader_G, :-1]
    deviation_GK = np.sqrt(np.maximum(variance_GK + variance_GK[groups, leader_G, None] - 2 * shared_GK, 1e-12))
    z_GK = lead_GK / deviation_GK
    density_GK = np.exp(-0.5 * z_GK**2) / math.sqrt(2 * math.pi)
    loss_GK = np.where(rival_GK, deviation_GK * (density_GK - z_GK * ndtr(-z_GK)), 0.0)
    share_G = loss_GK.sum(axis=1) / np.maximum(lead_GK.max(axis=1), 1e-12)
    return leader_G, np.where(rival_GK, density_GK / deviation_GK, 0.0), share_G


def _gains(fitted: Posterior, leader_G: Indices, slope_GK: Floats) -> Floats:
    """Return by how much each battle, first by second, is expected to lower the sum of L_j (up to a constant factor)."""
    k, groups, c_GDD = slope_GK.shape[1], np.arange(len(leader_G)), fitted.covariance_GDD
    to_GDK = c_GDD[groups, :, leader_G][:, :, None] - c_GDD[:, :, :k]  # covariance of each unknown with e_leader - e_j
    shared_GKKK = to_GDK[:, :k, None, :] - to_GDK[:, None, :k, :] + to_GDK[:, k, None, None, :]
    variance_GK, bias_GK = np.diagonal(c_GDD, axis1=1, axis2=2)[:, :k], c_GDD[:, :k, k]
    own_GKK = (
        variance_GK[:, :, None]
        + variance_GK[:, None, :]
        - 2 * c_GDD[:, :k, :k]
        + 2 * (bias_GK[:, :, None] - bias_GK[:, None, :])
        + c_GDD[:, k, k, None, None]
    )
    p_GKK = expit(fitted.e_GK[:, :, None] - fitted.e_GK[:, None, :] + fitted.bias_G[:, None, None])
    v_GKK = p_GKK * (1 - p_GKK)
    return np.asarray(v_GKK * np.einsum("gabj,gj->gab", shared_GKKK**2, slope_GK) / (1 + v_GKK * own_GKK))
