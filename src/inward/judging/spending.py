"""What a judge has cost: requests, tokens and money. It is booked beside the records, never in them."""

from __future__ import annotations

import threading
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


class Tally:
    """Spending that threads add to while any other thread may read it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spending = Spending()

    def add(self, spending: Spending) -> None:
        with self._lock:
            self._spending = total([self._spending, spending])

    def read(self) -> Spending:
        """Return all that was added so far: nothing is counted in part, whenever this is called."""
        return self._spending


def total(spendings: Iterable[Spending]) -> Spending:
    """Return what several judges, or several stretches of work, have cost together."""
    items = list(spendings)
    return Spending(**{f.name: sum(getattr(item, f.name) for item in items) for f in fields(Spending)})
