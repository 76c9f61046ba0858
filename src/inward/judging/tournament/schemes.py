"""Which battles a tournament asks: plain functions from what is known of all groups to the battles of the next round.

G groups, K responses, always padded to the largest group. A scheme returns battles as index arrays (group, first, second),
none for a group that is finished, and never one that was asked before. The default is `inward.judging.adaptive`; those here
are the paper's and what the default is compared with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inward.judging.tournament.bradley_terry import Floats, battle_matrix, strengths

Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]
Battles = tuple[Ints, Ints, Ints]


@dataclass(frozen=True, slots=True, kw_only=True)
class TournamentState:
    """What is known before a round: results r_mn (NaN: none), what was asked, copies of each response and their length.

    `copies_GK` is 0 where a group has fewer than K different responses. What cannot be asked counts as asked.
    """

    results_GKK: Floats
    asked_GKK: Bools
    copies_GK: Ints
    lengths_GK: Floats
    round: int = 0

    @property
    def present_GK(self) -> Bools:
        return self.copies_GK > 0

    @property
    def fought_G(self) -> Ints:
        """How many battles of each group were asked."""
        return np.asarray((self.asked_GKK & _askable(self.copies_GK)).sum(axis=(1, 2)), dtype=np.intp)


Scheme = Callable[[TournamentState], Battles]


def initial_state(copies_GK: Ints, lengths_GK: Floats) -> TournamentState:
    """Return what is known before the first round. Lengths are in any unit; copies are how often a text stands in a group."""
    askable_GKK = _askable(copies_GK)
    return TournamentState(
        results_GKK=np.full(askable_GKK.shape, np.nan),
        asked_GKK=~askable_GKK,
        copies_GK=copies_GK,
        lengths_GK=lengths_GK,
    )


def play(known: TournamentState, scheme: Scheme, decide: Callable[[Battles], Floats]) -> TournamentState:
    """Ask round after round until the scheme has no more battles. `decide` returns r of each battle, NaN for an error."""
    while True:
        battles = scheme(known)
        if not battles[0].size:
            return known
        assert not known.asked_GKK[battles].any(), "a scheme asks no battle twice, and none that cannot be"
        results_GKK, asked_GKK = known.results_GKK.copy(), known.asked_GKK.copy()
        results_GKK[battles], asked_GKK[battles] = decide(battles), True
        known = dataclasses.replace(known, results_GKK=results_GKK, asked_GKK=asked_GKK, round=known.round + 1)


def full(known: TournamentState) -> Battles:
    """All ordered pairs at once, K (K - 1) battles: the paper's tournament."""
    return indices(~known.asked_GKK)


def random(battles: int, seed: int = 0) -> Scheme:
    """As many ordered pairs of each group as given, drawn without replacement, at once."""

    def scheme(known: TournamentState) -> Battles:
        if known.round > 0:
            return no_battles()
        draw_GKK = np.random.default_rng(seed).random(known.asked_GKK.shape)
        draw_GKK[known.asked_GKK] = np.inf
        flat = np.sort(draw_GKK.reshape(len(draw_GKK), -1), axis=1)
        cut_G = flat[:, min(battles, flat.shape[1]) - 1]
        return indices((draw_GKK <= cut_G[:, None, None]) & ~known.asked_GKK)

    return scheme


def swiss(rounds: int) -> Scheme:
    """Neighbours in the standings that have not met in both orders fight, the one first that stood first less often."""

    def scheme(known: TournamentState) -> Battles:
        if known.round >= rounds:
            return no_battles()
        standing_GK = strengths(battle_matrix(known.results_GKK)).round(7)  # so that padding settles no tie
        order_GK = np.argsort(np.where(known.present_GK, -standing_GK, np.inf), axis=1, kind="stable")
        counts_G = known.present_GK.sum(axis=1)
        return _collect(
            _neighbours([int(k) for k in order[:count]], asked)
            for order, count, asked in zip(order_GK, counts_G, known.asked_GKK, strict=True)
        )

    return scheme


def knockout(known: TournamentState) -> Battles:
    """Two knockouts, one of winners and one of losers, that share their first round; every meeting in both orders.

    Who wins more of the two battles goes on at the top, the other at the bottom; at equal wins the earlier at the top.
    """
    results_GKK = np.nan_to_num(known.results_GKK)
    margin_GKK = results_GKK - results_GKK.swapaxes(1, 2)
    return _collect(
        _bracket(present, margin, asked, known.round, best=True) | _bracket(present, margin, asked, known.round, best=False)
        for present, margin, asked in zip(known.present_GK, margin_GKK, known.asked_GKK, strict=True)
    )


def in_pairs(scheme: Scheme) -> Scheme:
    """Ask every battle of a scheme in both orders at once, for a judge to whom they are one question."""

    def both(known: TournamentState) -> Battles:
        mask_GKK = np.zeros_like(known.asked_GKK)
        mask_GKK[scheme(known)] = True
        return indices((mask_GKK | mask_GKK.swapaxes(1, 2)) & ~known.asked_GKK)

    return both


def indices(mask_GKK: Bools) -> Battles:
    """Return the battles where a mask is True."""
    group, first, second = np.nonzero(mask_GKK)
    return group, first, second


def no_battles() -> Battles:
    """Return what a scheme returns when every group is finished."""
    return np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.intp)


def _askable(copies_GK: Ints) -> Bools:
    present_GK = copies_GK > 0
    return present_GK[:, :, None] & present_GK[:, None, :] & ~np.eye(present_GK.shape[1], dtype=bool)


def _neighbours(waiting: list[int], asked_KK: Bools) -> set[tuple[int, int]]:
    stood_first_K = asked_KK.sum(axis=1)
    found: set[tuple[int, int]] = set()
    while waiting:
        one = waiting.pop(0)
        other = next((o for o in waiting if not (asked_KK[one, o] and asked_KK[o, one])), None)
        if other is None:
            continue
        waiting.remove(other)
        first, second = (one, other) if stood_first_K[one] <= stood_first_K[other] else (other, one)
        found.add((second, first) if asked_KK[first, second] else (first, second))
    return found


def _bracket(present_K: Bools, margin_KK: Floats, asked_KK: Bools, played: int, *, best: bool) -> set[tuple[int, int]]:
    """Replay the rounds of a knockout that were played, and return the battles of the next."""
    alive = [int(k) for k in np.flatnonzero(present_K)]
    for _ in range(played):
        pairs = [alive[at : at + 2] for at in range(0, len(alive), 2)]
        alive = [pair[0] if len(pair) == 1 or bool(margin_KK[pair[0], pair[1]] >= 0) is best else pair[1] for pair in pairs]
    meetings = list(zip(alive[::2], alive[1::2], strict=False))
    return {order for a, b in meetings for order in ((a, b), (b, a)) if not asked_KK[order]}


def _collect(battles_of_groups: Iterable[set[tuple[int, int]]]) -> Battles:
    rows = [(group, *battle) for group, battles in enumerate(battles_of_groups) for battle in sorted(battles)]
    table = np.array(rows, dtype=np.intp).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
