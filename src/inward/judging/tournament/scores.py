"""From battles to scores: a response's score is its strength among the responses to its prompt (METHOD.md step 3).

The strengths are the mode of the posterior that the adaptive tournament plans by, position bias and ties included, for every
scheme; `bradley_terry` says how that deviates from the paper. A battle that ended in an error tells nothing about either of the
two. A response of which no battle was decided has no score: it is unscored with the reason, and never put in the middle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from inward.judging.tournament.bradley_terry import PRIOR, posterior

Id = TypeVar("Id", str, int)
IdOut = TypeVar("IdOut", str, int, covariant=True)
Judged = tuple[float | None, str | None]
"""A score, or None and the reason why there is none."""


class BattleResult(Protocol[IdOut]):
    """What a stored verdict (which names outputs) and a ruling (which names places in a group) say of a battle alike."""

    @property
    def first(self) -> IdOut: ...
    @property
    def second(self) -> IdOut | None: ...
    @property
    def value(self) -> float | None: ...
    @property
    def unscored(self) -> str | None: ...


def score_battles(groups: Sequence[Sequence[BattleResult[Id]]], prior: float | None) -> list[dict[Id, Judged]]:
    """Return for each group, from all its battles, the score of every response that fought, or why it has none.

    `prior` is that of `posterior`, whose default stands in for None.
    """
    return [
        {
            id_: (strength_of[id_], None) if id_ in strength_of else (None, _undecided(id_, battles))
            for id_ in sorted({id_ for battle in battles for id_ in _fighters(battle)})
        }
        for battles, strength_of in zip(groups, _strengths(groups, prior), strict=True)
    ]


def _strengths(groups: Sequence[Sequence[BattleResult[Id]]], prior: float | None) -> list[dict[Id, float]]:
    """Return the strengths of those with a decided battle, all groups fitted side by side and none influenced by another."""
    decided = [[battle for battle in battles if battle.value is not None] for battles in groups]
    ids = [sorted({id_ for battle in battles for id_ in _fighters(battle)}) for battles in decided]
    largest = max((len(own) for own in ids), default=0)
    if not largest:
        return [{} for _ in groups]
    results_GKK = np.full((len(groups), largest, largest), np.nan)
    for results_KK, own, battles in zip(results_GKK, ids, decided, strict=True):
        index_of = {id_: index for index, id_ in enumerate(own)}
        for battle in battles:
            first, second = _fighters(battle)
            results_KK[index_of[first], index_of[second]] = battle.value
    strengths_GK = posterior(results_GKK, PRIOR if prior is None else prior).e_GK
    return [dict(zip(own, map(float, strengths_K), strict=False)) for own, strengths_K in zip(ids, strengths_GK, strict=True)]


def _fighters(battle: BattleResult[Id]) -> tuple[Id, Id]:
    assert battle.second is not None, "pointwise verdicts among battles"
    return battle.first, battle.second


def _undecided(id_: Id, battles: Sequence[BattleResult[Id]]) -> str:
    reasons = Counter(battle.unscored for battle in battles if id_ in _fighters(battle))
    (reason, times), *_ = reasons.most_common(1)
    return f"none of its {reasons.total()} battles was decided, {times} for: {reason}"
