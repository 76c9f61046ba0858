"""A cascade: a cheap judge, and a dear one for the groups in which the cheap one is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inward.judging.combined.part import Part, scores_of
from inward.judging.judge import Group, Ruling
from inward.judging.length_control import length_controlled
from inward.judging.spending import Spending, total
from inward.judging.tournament.scores import Judged

MIN_RESPONSES = 3
"""From so many responses on a lead tells something: of two, each is one deviation from their mean, whatever their scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """The judge `then` rules on the whole of each group in which `first` is unsure of the best or the worst response.

    `first` scores every group (a pairwise judge: by its Bradley-Terry strengths). It is sure where it left no response
    unscored, there are at least three, their scores are not all equal, and both leads are `sure` or more: by how much the
    length-controlled score s (`length_control`) of the best exceeds that of the second, and that of the last but one that of
    the worst. A group with a single response has no best to be unsure of, and stays. What `then` cannot score is unscored: the
    judges of one group are never mixed. Each ruling's detail says under `ruled_by` whose it is.
    """

    first: Part
    then: Part
    sure: float
    rho: float = 0.0

    @property
    def name(self) -> str:
        return f"cascade(sure={self.sure:g}, rho={self.rho:g}, first={self.first.name}, then={self.then.name})"

    def costs(self) -> Spending:
        return total([self.first.costs(), self.then.costs()])

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        rulings = self.first.judge.judge(groups)
        leads = [
            _leads(group, judged, self.rho)
            for group, judged in zip(groups, scores_of(groups, rulings, self.first.prior), strict=True)
        ]
        unsure = [index for index, group in enumerate(groups) if len(group.responses) > 1 and not self._is_sure(leads[index])]
        handed_on = dict(zip(unsure, self.then.judge.judge([groups[index] for index in unsure]), strict=True))
        return [
            [
                (self.then if index in handed_on else self.first).mark(ruling, leads=leads[index])
                for ruling in handed_on.get(index, own)
            ]
            for index, own in enumerate(rulings)
        ]

    def _is_sure(self, leads: tuple[float, float] | None) -> bool:
        return leads is not None and min(leads) >= self.sure


def _leads(group: Group, judged: Sequence[Judged], rho: float) -> tuple[float, float] | None:
    """Return by how much s of the best leads the second, and of the last but one the worst; None where that tells nothing."""
    scores = [value for value, _ in judged if value is not None]
    if len(scores) < max(MIN_RESPONSES, len(judged)) or min(scores) == max(scores):
        return None
    s_GK = length_controlled(np.array([scores]), np.array([group.measured]), np.array([group.counted]), rho)
    s_K = np.sort(s_GK[0])
    return float(s_K[-1] - s_K[-2]), float(s_K[1] - s_K[0])
