"""Tournaments that the default one is compared with: battles drawn at random, a Swiss system and a double knockout."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from inward.judging.tournament.bradley_terry import posterior
from inward.judging.tournament.schemes import indices, no_battles
from inward.judging.tournament.state import Battles, Bools, Scheme, TournamentState
from inward.statistics import Floats


def random(battles: int, seed: int = 0) -> Scheme:
    """As many ordered pairs of each group as given, drawn without replacement, at once."""

    def scheme(state: TournamentState) -> Battles:
        if state.round > 0:
            return no_battles()
        draw_GKK = np.random.default_rng(seed).random(state.asked_GKK.shape)
        draw_GKK[state.asked_GKK] = np.inf
        sorted_GN = np.sort(draw_GKK.reshape(len(draw_GKK), -1), axis=1)
        largest_G = sorted_GN[:, min(battles, sorted_GN.shape[1]) - 1]
        return indices((draw_GKK <= largest_G[:, None, None]) & ~state.asked_GKK)

    return scheme


def swiss(rounds: int) -> Scheme:
    """Neighbours in the standings that have not met in both orders fight, the one first that stood first less often."""

    def scheme(state: TournamentState) -> Battles:
        if state.round >= rounds:
            return no_battles()
        standing_GK = posterior(state.results_GKK).e_GK
        order_GK = np.argsort(np.where(state.present_GK, -standing_GK, np.inf), axis=1, kind="stable")
        counts_G = state.present_GK.sum(axis=1)
        return _collect(
            _neighbours([int(k) for k in order[:count]], asked)
            for order, count, asked in zip(order_GK, counts_G, state.asked_GKK, strict=True)
        )

    return scheme


def knockout(state: TournamentState) -> Battles:
    """Two knockouts, one of winners and one of losers, that share their first round; every meeting in both orders.

    The winner of more of the two battles goes on at the top, the other at the bottom; at equal wins the earlier at the top.
    """
    results_GKK = np.nan_to_num(state.results_GKK)
    margin_GKK = results_GKK - results_GKK.swapaxes(1, 2)
    return _collect(
        _bracket(present, margin, asked, state.round, best=True) | _bracket(present, margin, asked, state.round, best=False)
        for present, margin, asked in zip(state.present_GK, margin_GKK, state.asked_GKK, strict=True)
    )


def _neighbours(waiting: list[int], asked_KK: Bools) -> set[tuple[int, int]]:
    stood_first_K = asked_KK.sum(axis=1)
    battles: set[tuple[int, int]] = set()
    while waiting:
        response = waiting.pop(0)
        rival = next((other for other in waiting if not (asked_KK[response, other] and asked_KK[other, response])), None)
        if rival is None:
            continue
        waiting.remove(rival)
        first, second = (response, rival) if stood_first_K[response] <= stood_first_K[rival] else (rival, response)
        battles.add((second, first) if asked_KK[first, second] else (first, second))
    return battles


def _bracket(present_K: Bools, margin_KK: Floats, asked_KK: Bools, rounds: int, *, best: bool) -> set[tuple[int, int]]:
    """Replay the rounds of a knockout that were played, and return the battles of the next."""
    alive = [int(k) for k in np.flatnonzero(present_K)]
    for _ in range(rounds):
        pairs = [alive[start : start + 2] for start in range(0, len(alive), 2)]
        alive = [pair[0] if len(pair) == 1 or bool(margin_KK[pair[0], pair[1]] >= 0) is best else pair[1] for pair in pairs]
    meetings = list(zip(alive[::2], alive[1::2], strict=False))
    return {order for a, b in meetings for order in ((a, b), (b, a)) if not asked_KK[order]}


def _collect(battles_of_groups: Iterable[set[tuple[int, int]]]) -> Battles:
    rows = [(group, *battle) for group, battles in enumerate(battles_of_groups) for battle in sorted(battles)]
    table = np.array(rows, dtype=np.intp).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
