"""Schemes, which choose the battles of a tournament: the paper's, and what schemes share. The default is `adaptive`."""

from __future__ import annotations

import numpy as np

from inward.judging.tournament.state import Battles, Bools, Scheme, TournamentState


def full(state: TournamentState) -> Battles:
    """All ordered pairs at once, K (K - 1) battles: the paper's tournament."""
    return indices(~state.asked_GKK)


def in_pairs(scheme: Scheme) -> Scheme:
    """Ask every battle of a scheme in both orders at once, for a judge to whom they are one question."""

    def both_orders(state: TournamentState) -> Battles:
        mask_GKK = np.zeros_like(state.asked_GKK)
        mask_GKK[scheme(state)] = True
        return indices((mask_GKK | mask_GKK.swapaxes(1, 2)) & ~state.asked_GKK)

    return both_orders


def indices(mask_GKK: Bools) -> Battles:
    """Return the battles where a mask is True."""
    group, first, second = np.nonzero(mask_GKK)
    return group, first, second


def no_battles() -> Battles:
    """Return what a scheme returns when every group is finished."""
    return np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.intp)
