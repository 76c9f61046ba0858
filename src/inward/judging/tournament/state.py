"""The state of a tournament, and the loop that asks round after round until its scheme wants no more battles.

G groups, K responses, always padded to the largest group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inward.statistics import Counts, Floats

Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]
Battles = tuple[Indices, Indices, Indices]
"""Battles as index arrays: the group, the response that stands first and the one that stands second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TournamentState:
    """What all groups came to before a round: results r_mn (NaN: none), which battles were asked, copies and lengths.

    `copies_GK` is how often a response stands in its group, and 0 where a group has fewer than K different ones. A battle that
    cannot be asked (of a response with itself or with padding) counts as asked.
    """

    results_GKK: Floats
    asked_GKK: Bools
    copies_GK: Counts
    lengths_GK: Floats
    round: int = 0

    @property
    def present_GK(self) -> Bools:
        return self.copies_GK > 0

    @property
    def fought_G(self) -> Counts:
        """How many battles of each group were asked."""
        return np.asarray((self.asked_GKK & _askable(self.copies_GK)).sum(axis=(1, 2)), dtype=np.intp)

    def of_groups(self, groups: Indices) -> TournamentState:
        """Return the state of some of the groups."""
        return dataclasses.replace(
            self,
            results_GKK=self.results_GKK[groups],
            asked_GKK=self.asked_GKK[groups],
            copies_GK=self.copies_GK[groups],
            lengths_GK=self.lengths_GK[groups],
        )


Scheme = Callable[[TournamentState], Battles]
"""From a state to the battles of the next round: no group's battles where it is finished, and none that was asked before."""


def initial_state(copies_GK: Counts, lengths_GK: Floats) -> TournamentState:
    """Return the state before the first round. Lengths are in any unit."""
    askable_GKK = _askable(copies_GK)
    return TournamentState(
        results_GKK=np.full(askable_GKK.shape, np.nan),
        asked_GKK=~askable_GKK,
        copies_GK=copies_GK,
        lengths_GK=lengths_GK,
    )


def play(state: TournamentState, scheme: Scheme, decide: Callable[[Battles], Floats]) -> TournamentState:
    """Ask round after round until the scheme has no more battles. `decide` returns r of each battle, NaN for an error."""
    while True:
        battles = scheme(state)
        if not battles[0].size:
            return state
        assert not state.asked_GKK[battles].any(), "a scheme asks no battle twice, and none that cannot be asked"
        results_GKK, asked_GKK = state.results_GKK.copy(), state.asked_GKK.copy()
        results_GKK[battles], asked_GKK[battles] = decide(battles), True
        state = dataclasses.replace(state, results_GKK=results_GKK, asked_GKK=asked_GKK, round=state.round + 1)


def _askable(copies_GK: Counts) -> Bools:
    present_GK = copies_GK > 0
    return present_GK[:, :, None] & present_GK[:, None, :] & ~np.eye(present_GK.shape[1], dtype=bool)
