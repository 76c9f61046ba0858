"""A judge that follows a function: for tests, and for programs that make it themselves (recipes use kind = 'python')."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inward.judging.judge import Group, Ruling
from inward.judging.spending import Spending
from inward.records import content_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """Score = `score(prompt text, response)`; a share `failure_rate` of the responses is left unscored instead.

    Which ones fail depends on `seed` and on their text alone, so neither order nor company can change it.
    """

    score: Callable[[str, str], float]
    failure_rate: float = 0.0
    seed: int = 0
    name: str = "scripted"

    def costs(self) -> Spending:
        return Spending()

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        return [
            [self._rule(group.prompt.text, first, response) for first, response in enumerate(group.responses)]
            for group in groups
        ]

    def _rule(self, prompt: str, first: int, response: str) -> Ruling:
        chance = int(content_id(str(self.seed), prompt, response), 16) / 2**64
        if chance < self.failure_rate:
            return Ruling(first=first, unscored="scripted failure")
        return Ruling(first=first, value=self.score(prompt, response))
