"""The default tournament: asks only what is needed to know the best and the worst response (the paper asks every battle).

The question is which response has the best and which the worst length-controlled score s = N(e) - rho * N(length) (METHOD.md
step 4); e are Bradley-Terry strengths. That needs the spread over all K, so everyone is placed roughly first: in the opening
round, a ring, each response fights once from either position. From then on, every round:

1. The Laplace posterior of all strengths and of the position bias is fitted to a group's battles so far. With mean and spread
   of e held at the mode, s is linear in e, so the lead of the best response i over another j is normal with some mean m_j
   and deviation d_j. What choosing i is expected to lose to j is L_j = d_j (phi(z_j) - z_j Phi(-z_j)), with z_j = m_j / d_j.
2. The group is finished when, at the top as at the bottom, the sum of L_j over all j is at most (1 - confidence) of the gap
   between best and worst. A sum counts overlapping losses twice, so the true share is smaller. `limit` ends it in any case.
3. Else the battle is asked that takes most off the sum of L_j: dL_j / d(d_j^2) = phi(z_j) / (2 d_j), and a battle x whose
   result has variance v takes v (x'C c_j)^2 / (1 + v x'C x) off d_j^2 = c_j'C c_j (C the covariance: one Kalman step).
   Of its two orders that one is asked in which the response stands first that did so less often.

G groups, K responses, D = K + 1 unknowns. Groups do not influence each other, so batches may be cut in any way.

For a judge with one verdict for both orders of a pair (`schemes.in_pairs`) the opening round pairs the responses off instead of
making a ring. Such a verdict stands in the results twice, in both directions, so that the posterior is surer than it should be;
it takes a higher confidence to come to the same loss: `CONFIDENCE_IN_PAIRS`, from the simulation of benchmarks/judging.py.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from inward.judging.tournament.bradley_terry import PRIOR, Floats, Posterior, posterior, sigmoid
from inward.judging.tournament.schemes import Battles, Bools, Ints, Scheme, TournamentState, indices, no_battles

CONFIDENCE = 0.87
CONFIDENCE_IN_PAIRS = 0.92
LIMIT = 4.0
TIE = 1e-7


def adaptive(
    *,
    rho: float = 0.0,
    confidence: float = CONFIDENCE,
    limit: float = LIMIT,
    at_once: int = 1,
    prior: float = PRIOR,
    paired: bool = False,
) -> Scheme:
    """Return the scheme. `limit` is battles per response; `at_once`, battles a group asks in a round for each of its ends.

    `paired` opens with pairs in the place of a ring.
    """

    def scheme(known: TournamentState) -> Battles:
        counts_G = known.present_GK.sum(axis=1)
        left_G = np.floor(limit * counts_G).astype(np.intp) - known.fought_G
        if known.round == 0:
            return _opening(known.present_GK, left_G, step=2 if paired else 1)
        open_G = np.flatnonzero((left_G > 0) & ~known.asked_GKK.all(axis=(1, 2)))
        if not open_G.size:
            return no_battles()
        part = _groups(known, open_G)
        believed = posterior(part.results_GKK, prior)
        group, first, second = indices(_next(part, believed, left_G[open_G], rho, confidence, at_once))
        return open_G[group], first, second

    return scheme


def controlled(e_GK: Floats, lengths_GK: Floats, copies_GK: Ints, rho: float) -> Floats:
    """Return s = N(e) - rho * N(length) over all copies; NaN where there is no response."""
    s_GK = _normalise(e_GK, copies_GK)[0] - rho * _normalise(lengths_GK, copies_GK)[0]
    return np.where(copies_GK > 0, s_GK, np.nan)


def _next(known: TournamentState, believed: Posterior, left_G: Ints, rho: float, confidence: float, at_once: int) -> Bools:
    """Return a mask (G, K, K) of the battles to ask, for the top and then for the bottom, no more than are left."""
    taken_GKK, left_G = known.asked_GKK.copy(), left_G.copy()
    for sign in (1.0, -1.0):
        lead_G, slope_GK, share_G = _losses(known, believed, rho, sign)
        gain_GKK = _gains(believed, lead_G, slope_GK)
        for _ in range(at_once):
            asks_G = np.flatnonzero((share_G > 1 - confidence) & (left_G > 0) & ~taken_GKK.all(axis=(1, 2)))
            gain_GKK[taken_GKK] = -np.inf
            first, second = np.unravel_index(_largest(gain_GKK.reshape(len(gain_GKK), -1)), gain_GKK.shape[1:])
            first, second = _turned(taken_GKK[asks_G], first[asks_G], second[asks_G])
            taken_GKK[asks_G, first, second] = True
            left_G[asks_G] -= 1
    return taken_GKK & ~known.asked_GKK


def _largest(values_GN: Floats) -> Ints:
    """Return where each row first reaches its maximum, up to rounding: how a group is padded must not settle a tie."""
    top_G1 = values_GN.max(axis=1, keepdims=True)
    tolerance_G1 = TIE * np.where(np.isfinite(top_G1), np.abs(top_G1), 0.0)
    return np.asarray((values_GN >= top_G1 - tolerance_G1).argmax(axis=1), dtype=np.intp)


def _turned(taken_GKK: Bools, first_G: Ints, second_G: Ints) -> tuple[Ints, Ints]:
    """Return the battles with the response first that stood first less often, where that order is still to be asked."""
    at = np.arange(len(first_G))
    lean_GK = taken_GKK.sum(axis=2) - taken_GKK.sum(axis=1)
    turn_G = (lean_GK[at, first_G] > lean_GK[at, second_G]) & ~taken_GKK[at, second_G, first_G]
    return np.where(turn_G, second_G, first_G), np.where(turn_G, first_G, second_G)


def _losses(known: TournamentState, believed: Posterior, rho: float, sign: float) -> tuple[Ints, Floats, Floats]:
    """Return the leader i (the last one for sign -1), the slope of L_j in d_j^2, and the sum of L_j as a share of the gap."""
    s_GK = sign * controlled(believed.e_GK, known.lengths_GK, known.copies_GK, rho)
    at, (_, std_G1) = np.arange(len(s_GK)), _normalise(believed.e_GK, known.copies_GK)
    lead_G = _largest(np.where(known.present_GK, s_GK, -np.inf))
    lead_GK = (s_GK[at, lead_G, None] - s_GK) * np.where(std_G1 > 0, std_G1, 1.0)
    covariance = believed.covariance_GDD
    variance_GK = np.diagonal(covariance, axis1=1, axis2=2)[:, :-1]
    deviation_GK = np.sqrt(np.maximum(variance_GK + variance_GK[at, lead_G, None] - 2 * covariance[at, lead_G, :-1], 1e-12))
    rival_GK = known.present_GK.copy()
    rival_GK[at, lead_G] = False
    z_GK = np.where(rival_GK, lead_GK / deviation_GK, 0.0)
    density_GK = np.exp(-0.5 * z_GK**2) / math.sqrt(2 * math.pi)
    loss_GK = np.where(rival_GK, deviation_GK * (density_GK - z_GK * normal_tail(z_GK)), 0.0)
    gap_G = np.where(rival_GK, lead_GK, 0.0).max(axis=1)
    share_G = loss_GK.sum(axis=1) / np.maximum(gap_G, 1e-12)
    return lead_G, np.where(rival_GK, density_GK / deviation_GK, 0.0), share_G


def _gains(believed: Posterior, lead_G: Ints, slope_GK: Floats) -> Floats:
    """Return by how much each battle, first by second, is expected to lower the sum of L_j (up to a constant factor)."""
    k, at, c_GDD = slope_GK.shape[1], np.arange(len(lead_G)), believed.covariance_GDD
    to_GDK = c_GDD[at, :, lead_G][:, :, None] - c_GDD[:, :, :k]  # covariance of each unknown with e_lead - e_j
    shared_GKKK = to_GDK[:, :k, None, :] - to_GDK[:, None, :k, :] + to_GDK[:, k, None, None, :]
    variance_GK, bias_GK = np.diagonal(c_GDD, axis1=1, axis2=2)[:, :k], c_GDD[:, :k, k]
    own_GKK = (
        variance_GK[:, :, None]
        + variance_GK[:, None, :]
        - 2 * c_GDD[:, :k, :k]
        + 2 * (bias_GK[:, :, None] - bias_GK[:, None, :])
        + c_GDD[:, k, k, None, None]
    )
    p_GKK = sigmoid(believed.e_GK[:, :, None] - believed.e_GK[:, None, :] + believed.bias_G[:, None, None])
    v_GKK = p_GKK * (1 - p_GKK)
    return np.asarray(v_GKK * np.einsum("gabj,gj->gab", shared_GKKK**2, slope_GK) / (1 + v_GKK * own_GKK))


def normal_tail(x: Floats) -> Floats:
    """Return P(N(0, 1) > x) to 1e-7 (Abramowitz and Stegun 1964, 26.2.17), which numpy alone does not have."""
    t = 1 / (1 + 0.2316419 * np.abs(x))
    series = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = series * np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    return np.where(x >= 0, tail, 1 - tail)


def _normalise(values_GK: Floats, copies_GK: Ints) -> tuple[Floats, Floats]:
    """Return (v - mean) / std and std (G, 1), every response weighted by its copies; zeros where all are equal."""
    total_G1 = np.maximum(copies_GK.sum(axis=1, keepdims=True), 1)
    centred_GK = values_GK - (values_GK * copies_GK).sum(axis=1, keepdims=True) / total_G1
    std_G1 = np.sqrt((centred_GK**2 * copies_GK).sum(axis=1, keepdims=True) / total_G1)
    spread_G1 = std_G1 > TIE  # below that, strengths differ by rounding alone
    return np.where(spread_G1, centred_GK / np.where(spread_G1, std_G1, 1.0), 0.0), std_G1 * spread_G1


def _opening(present_GK: Bools, left_G: Ints, *, step: int) -> Battles:
    """Return the battles of each response, or of every second one, with the next, the last one's being with the first."""
    counts_G = present_GK.sum(axis=1)
    group, first = np.nonzero(present_GK & (counts_G > 1)[:, None])
    fits = (first < left_G[group]) & (first % step == 0)
    group, first = group[fits], first[fits]
    return group, first, (first + 1) % counts_G[group]


def _groups(known: TournamentState, at: Ints) -> TournamentState:
    return dataclasses.replace(
        known,
        results_GKK=known.results_GKK[at],
        asked_GKK=known.asked_GKK[at],
        copies_GK=known.copies_GK[at],
        lengths_GK=known.lengths_GK[at],
    )
