"""The pairwise judge: responses fight in a tournament, and the battles become scores.

`Pairwise` is a judge like any other; that its rulings name two responses is all a stage has to know. A response's score is its
Bradley-Terry strength among the responses to its prompt (`tournament.scores`). A battle without a verdict counts for nobody,
as in the paper, but it is kept as an error: a response of which no battle was decided has no score, never a middling one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from inward.config import PairwiseJudge
from inward.judging.judge import Group, Ruling
from inward.judging.pairwise.comparer import Comparer
from inward.judging.pairwise.make_comparer import check_comparer, make_comparer
from inward.judging.spending import Spending
from inward.judging.tournament.adaptive import CONFIDENCE, CONFIDENCE_IN_PAIRS, LIMIT, adaptive
from inward.judging.tournament.run import run_tournament
from inward.judging.tournament.schemes import full, in_pairs
from inward.judging.tournament.state import Scheme
from inward.records import Prompt

ALONE = "no other response to compare it with"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairwise:
    """A `Judge` that lets the different responses of each group fight over a comparer; `scheme` chooses the battles.

    Of equal responses the first in its group stands for all (`tournament`). Those without another to fight are unscored.
    """

    comparer: Comparer
    scheme: Scheme
    scheme_name: str

    @property
    def name(self) -> str:
        return f"{self.comparer.name}|{self.scheme_name}"

    def costs(self) -> Spending:
        return self.comparer.costs()

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        """Return the rulings on every battle fought, for all groups at once, so that the comparer gets large batches."""
        played = run_tournament(groups, self.comparer, self.scheme)
        return [ruled or _nothing_to_compare(group) for group, ruled in zip(groups, played, strict=True)]


def load(settings: PairwiseJudge, *, rho: float, today: date) -> Pairwise:
    """Return the pairwise judge of a recipe, its model loaded. Raises `UsageError` where it cannot be.

    `today` is the date for a model here whose chat template writes one.
    """
    comparer = make_comparer(settings, today)
    if settings.scheme == "full":
        return Pairwise(comparer=comparer, scheme=full, scheme_name="full")
    paired = settings.both_orders
    confidence = settings.confidence or (CONFIDENCE_IN_PAIRS if paired else CONFIDENCE)
    scheme = adaptive(rho=rho, confidence=confidence, prior=settings.prior, paired=paired)
    name = f"adaptive:{confidence:g}:{rho:g}:{settings.prior:g}"
    return Pairwise(comparer=comparer, scheme=in_pairs(scheme) if paired else scheme, scheme_name=name)


def most_battles(settings: PairwiseJudge, k: int) -> int:
    """Return how many battles `k` responses to one prompt are asked for at most."""
    every = k * (k - 1)
    if settings.scheme == "full":
        return every
    last_round = 2 if settings.both_orders else 0  # two battles of a last round may bring their other orders with them
    return min(every, math.floor(LIMIT * k) + last_round)


def check(settings: PairwiseJudge, prompts: Iterable[Prompt]) -> None:
    """Look for the judge's key or model and try its chat template, without loading weights. Raises `UsageError`."""
    check_comparer(settings)


def _nothing_to_compare(group: Group) -> list[Ruling]:
    return [Ruling(first=index, unscored=ALONE) for index in range(len(group.responses))]
