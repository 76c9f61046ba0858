"""A judge inside another: its key in the settings, its score of each response whichever kind of judge it is, and its mark."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inward.judging.judge import Group, Judge, Ruling
from inward.judging.spending import Spending
from inward.judging.tournament.scores import Judged, score_battles


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A judge inside another: `key` is its place in the settings, `prior` that of its strengths if it lets responses fight."""

    key: str
    judge: Judge
    prior: float | None = None

    @property
    def name(self) -> str:
        """The judge with all that its scores depend on."""
        return self.judge.name if self.prior is None else f"{self.judge.name}, prior={self.prior:g}"

    def costs(self) -> Spending:
        return self.judge.costs()

    def mark(self, ruling: Ruling, **note: Any) -> Ruling:
        """Return the ruling with the note, and with this part as the one that ruled, in its detail."""
        ruled_by = {"ruled_by": {"part": self.key, "judge": self.judge.name}}
        return dataclasses.replace(ruling, detail=json.dumps(json.loads(ruling.detail) | ruled_by | note))


def scores_of(groups: Sequence[Group], rulings: Sequence[Sequence[Ruling]], prior: float | None) -> list[list[Judged]]:
    """Return for each response of each group its score, or None and why it has none: its value, or its strength in battle.

    Copies of a text, of which battles name the first, all have its score.
    """
    has_battles = [any(ruling.second is not None for ruling in own) for own in rulings]
    strengths = iter(score_battles([own for own, battles in zip(rulings, has_battles, strict=True) if battles], prior))
    scores: list[list[Judged]] = []
    for group, own, battles in zip(groups, rulings, has_battles, strict=True):
        if battles:
            strength_of = next(strengths)
            scores.append([strength_of[group.responses.index(text)] for text in group.responses])
        else:
            judged_of = {ruling.first: (ruling.value, ruling.unscored) for ruling in own}
            scores.append([judged_of[index] for index in range(len(group.responses))])
    return scores
