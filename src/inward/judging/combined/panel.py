"""A panel: several judges whose votes are averaged, or that must agree on the best and the worst."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from inward.judging.combined.part import Part, scores_of
from inward.judging.judge import Group, Ruling
from inward.judging.spending import Spending, total
from inward.judging.tournament.scores import Judged
from inward.statistics import normalise

DISAGREES = "the panel disagrees"
DECIMALS = 9
"""Of a mean of votes: where they cancel, what rounding leaves of them must not choose a best response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Score = mean over the members of N(member's score), each normalised over the responses that *all* of them scored.

    A response that some member left unscored is unscored, for that member's reason: a mean over the others would be another
    judge's. With rule "agree", so is every response of a group in which some member does not put each of the best by that
    mean above each of the worst. `detail` holds under `members` what each member said; the battles of a pairwise one stand at
    the response that was read first, and name the other by its place in the group.
    """

    members: tuple[Part, ...]
    rule: Literal["average", "agree"] = "average"

    @property
    def name(self) -> str:
        return f"panel({self.rule}, {', '.join(member.name for member in self.members)})"

    def costs(self) -> Spending:
        return total(member.costs() for member in self.members)

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        rulings = [member.judge.judge(groups) for member in self.members]
        scores = [scores_of(groups, own, member.prior) for member, own in zip(self.members, rulings, strict=True)]
        return [
            self._rule(len(group.responses), [own[index] for own in rulings], [judged[index] for judged in scores])
            for index, group in enumerate(groups)
        ]

    def _rule(self, size: int, rulings: list[list[Ruling]], judged: list[list[Judged]]) -> list[Ruling]:
        """Rule on one group from each member's rulings and scores there."""
        common = [index for index in range(size) if all(scores[index][0] is not None for scores in judged)]
        votes = [_votes(scores, common) for scores in judged]
        means = {index: round(fmean(vote[index] for vote in votes), DECIMALS) for index in common}
        agreed = self.rule == "average" or _agree(means, votes)
        return [
            Ruling(
                first=index,
                value=means[index] if agreed and index in means else None,
                unscored=self._reason(index, judged) if index not in means else None if agreed else DISAGREES,
                detail=json.dumps({"members": self._entries(index, rulings, judged, votes)}),
            )
            for index in range(size)
        ]

    def _reason(self, index: int, judged: list[list[Judged]]) -> str:
        return next(
            f"{part.key}: {scores[index][1]}"
            for part, scores in zip(self.members, judged, strict=True)
            if scores[index][0] is None
        )

    def _entries(
        self, index: int, rulings: list[list[Ruling]], judged: list[list[Judged]], votes: list[dict[int, float]]
    ) -> list[dict[str, Any]]:
        return [
            {
                "judge": part.name,
                "score": scores[index][0],
                "vote": vote.get(index),
                "unscored": scores[index][1],
                "rulings": [_entry(ruling) for ruling in own if ruling.first == index],
            }
            for part, own, scores, vote in zip(self.members, rulings, judged, votes, strict=True)
        ]


def _votes(judged: Sequence[Judged], common: Sequence[int]) -> dict[int, float]:
    values = [value for index in common if (value := judged[index][0]) is not None]
    return dict(zip(common, normalise(values), strict=True)) if values else {}


def _agree(means: dict[int, float], votes: Sequence[dict[int, float]]) -> bool:
    """Say whether all put the best above the worst. Where all means are equal there is neither, and nothing to disagree on."""
    if not means or min(means.values()) == max(means.values()):
        return True
    best = [index for index, mean in means.items() if mean == max(means.values())]
    worst = [index for index, mean in means.items() if mean == min(means.values())]
    return all(min(vote[index] for index in best) > max(vote[index] for index in worst) for vote in votes)


def _entry(ruling: Ruling) -> dict[str, Any]:
    against = {} if ruling.second is None else {"against": ruling.second}
    return {**against, "value": ruling.value, "unscored": ruling.unscored, "detail": json.loads(ruling.detail)}
