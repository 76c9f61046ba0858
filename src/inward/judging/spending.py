"""What a judge has cost: requests, tokens and money. It is booked beside the records, never in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What judging has cost so far. `uncounted` answers came without a count of tokens, so that the money is a lower bound.

    Money is in whatever the prices of the recipe are in; what a model in this process reads and writes has none.
    """

    answers: int = 0
    failures: int = 0
    retries: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0

    def __sub__(self, earlier: Spending) -> Spending:
        return Spending(**{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)})


def total(spendings: Iterable[Spending]) -> Spending:
    """Return what several judges, or several stretches of work, have cost together."""
    items = list(spendings)
    return Spending(**{f.name: sum(getattr(item, f.name) for item in items) for f in fields(Spending)})
