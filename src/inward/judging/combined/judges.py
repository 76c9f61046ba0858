"""Judges made of judges: a cascade, a panel, routes. Each is a judge like any other, so a stage need not know.

Who ruled on a response stands in its rulings' detail, under `ruled_by` (cascade, routes) or `members` (panel).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from inward.judging.combined.group_scores import Part, scores_of
from inward.judging.judge import Group, Ruling
from inward.judging.pairwise.judge import Judged
from inward.judging.spending import Spending, total
from inward.records import Prompt
from inward.statistics import normalise

DISAGREES = "the panel disagrees"
DECIMALS = 9
"""Of a mean of votes: where they cancel, what rounding leaves of them must not choose a best response."""
ENOUGH = 3
"""Responses from which on a lead tells something: of two, each is one deviation from their mean, whatever they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """The judge `then` rules on the groups in which `first` is unsure of the best or the worst response, whole.

    `first` scores every group (a pairwise judge: by its Bradley-Terry strengths), and s = N(score) - rho * N(length), as in
    pairing. It is sure where it left no response unscored, there are at least three, their scores are not all equal, and both
    leads are `sure` or more: s of the best over the second, and of the last but one over the worst, in standard deviations
    of the group's scores. A group with a single response has no best to be unsure of, and stays. What `then` cannot score is
    unscored: the judges of one group are never mixed.
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
        unsure = [at for at, group in enumerate(groups) if len(group.responses) > 1 and not self._is_sure(leads[at])]
        again = dict(zip(unsure, self.then.judge.judge([groups[at] for at in unsure]), strict=True))
        return [
            [
                _noted(ruling, _ruled_by(self.then if at in again else self.first) | {"leads": leads[at]})
                for ruling in again.get(at, ruled)
            ]
            for at, ruled in enumerate(rulings)
        ]

    def _is_sure(self, leads: tuple[float, float] | None) -> bool:
        return leads is not None and min(leads) >= self.sure


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Score = mean over the members of N(member's score), each normalised over the responses that *all* of them scored.

    A response that some member left unscored is unscored, for that member's reason: a mean over the others would be another
    judge's. With rule "agree", so is every response of a group in which some member does not put each of the best by that
    mean above each of the worst. `detail` holds what each member said; the battles of a pairwise one stand at the response
    that was read first, and name the other by its place in the group.
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
        scores = [scores_of(groups, ruled, part.prior) for part, ruled in zip(self.members, rulings, strict=True)]
        return [
            self._rule(len(group.responses), [ruled[at] for ruled in rulings], [judged[at] for judged in scores])
            for at, group in enumerate(groups)
        ]

    def _rule(self, size: int, rulings: list[list[Ruling]], judged: list[list[Judged]]) -> list[Ruling]:
        """Rule on one group from what each member said of it and its scores there."""
        common = [place for place in range(size) if all(scores[place][0] is not None for scores in judged)]
        votes = [_votes(scores, common) for scores in judged]
        means = {place: round(fmean(vote[place] for vote in votes), DECIMALS) for place in common}
        agreed = self.rule == "average" or _agree(means, votes)
        return [
            Ruling(
                first=place,
                value=means[place] if agreed and place in means else None,
                unscored=self._reason(place, judged) if place not in means else None if agreed else DISAGREES,
                detail=json.dumps({"members": self._said(place, rulings, judged, votes)}),
            )
            for place in range(size)
        ]

    def _reason(self, place: int, judged: list[list[Judged]]) -> str:
        return next(
            f"{part.key}: {scores[place][1]}"
            for part, scores in zip(self.members, judged, strict=True)
            if scores[place][0] is None
        )

    def _said(
        self, place: int, rulings: list[list[Ruling]], judged: list[list[Judged]], votes: list[dict[int, float]]
    ) -> list[dict[str, Any]]:
        return [
            {
                "judge": part.name,
                "score": scores[place][0],
                "vote": vote.get(place),
                "unscored": scores[place][1],
                "rulings": [_entry(ruling) for ruling in ruled if ruling.first == place],
            }
            for part, ruled, scores, vote in zip(self.members, rulings, judged, votes, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Every group is judged by the part that `route` names for its prompt, and by no other."""

    parts: tuple[Part, ...]
    route: Callable[[Prompt], str | None]
    rules: str

    @property
    def name(self) -> str:
        return f"routed({self.rules}, {', '.join(part.name for part in self.parts)})"

    def costs(self) -> Spending:
        judges = {id(part.judge): part.judge for part in self.parts}  # two routes may lead to one judge
        return total(judge.costs() for judge in judges.values())

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        """Return the rulings; each part is asked once, for all its groups."""
        keys = [self.route(group.prompt) for group in groups]
        found: dict[int, list[Ruling]] = {}
        for part in self.parts:
            mine = [at for at, key in enumerate(keys) if key == part.key]
            ruled = part.judge.judge([groups[at] for at in mine])
            found |= {at: [_noted(r, _ruled_by(part)) for r in own] for at, own in zip(mine, ruled, strict=True)}
        assert len(found) == len(groups), "a prompt that no route takes was refused before anything ran"
        return [found[at] for at in range(len(groups))]


def _leads(group: Group, judged: Sequence[Judged], rho: float) -> tuple[float, float] | None:
    """Return by how much s of the best leads the second, and of the last but one the worst; None where that tells nothing."""
    values = [value for value, _ in judged if value is not None]
    if len(values) < max(ENOUGH, len(judged)) or min(values) == max(values):
        return None
    lengths = normalise(group.measured)
    s = sorted((score - rho * length for score, length in zip(normalise(values), lengths, strict=True)), reverse=True)
    return s[0] - s[1], s[-2] - s[-1]


def _votes(judged: Sequence[Judged], common: Sequence[int]) -> dict[int, float]:
    values = [value for place in common if (value := judged[place][0]) is not None]
    return dict(zip(common, normalise(values), strict=True)) if values else {}


def _agree(means: dict[int, float], votes: Sequence[dict[int, float]]) -> bool:
    """Say whether all put the best above the worst. Where all means are equal there is neither, and nothing to disagree on."""
    if not means or min(means.values()) == max(means.values()):
        return True
    best = [place for place, mean in means.items() if mean == max(means.values())]
    worst = [place for place, mean in means.items() if mean == min(means.values())]
    return all(min(vote[place] for place in best) > max(vote[place] for place in worst) for vote in votes)


def _ruled_by(part: Part) -> dict[str, Any]:
    return {"ruled_by": {"part": part.key, "judge": part.judge.name}}


def _noted(ruling: Ruling, note: dict[str, Any]) -> Ruling:
    return dataclasses.replace(ruling, detail=json.dumps(json.loads(ruling.detail) | note))


def _entry(ruling: Ruling) -> dict[str, Any]:
    against = {} if ruling.second is None else {"against": ruling.second}
    return {**against, "value": ruling.value, "unscored": ruling.unscored, "detail": json.loads(ruling.detail)}
