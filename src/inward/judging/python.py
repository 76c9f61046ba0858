"""The judge that is a user's own Python function: `score(prompt, responses)` once a prompt, its answers checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from numbers import Real
from typing import Any, NoReturn

from inward.config import PythonJudge
from inward.errors import UsageError
from inward.functions import UserFunction, user_function
from inward.judging.judge import Group, Ruling
from inward.judging.spending import Spending
from inward.records import Prompt


@dataclass(frozen=True, slots=True)
class Unscored:
    """What a function gives in place of a number where a response has no score, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonFunction:
    """A `Judge` whose scores a user's function gives. Its name holds the digest of the function's file.

    A number that is not finite, and None, leave a response unscored. UsageError, with the function's own file and line, for
    what the function raises and for what cannot be a score.
    """

    function: UserFunction
    lowest: float | None = None
    highest: float | None = None

    @property
    def name(self) -> str:
        limits = {"lowest": self.lowest, "highest": self.highest}
        stated = [f"{key}={limit:g}" for key, limit in limits.items() if limit is not None]
        return f"python({', '.join([self.function.name, *stated])})"

    def costs(self) -> Spending:
        return Spending()

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        return [self._rule(group) for group in groups]

    def _rule(self, group: Group) -> list[Ruling]:
        answer = self.function(group.prompt, list(group.responses))
        if not isinstance(answer, Iterable) or isinstance(answer, str | bytes):
            self._refuse(group.prompt, f"returned {_shown(answer)}: it must return a list with one item a response")
        items = list(answer)
        if len(items) != len(group.responses):
            self._refuse(group.prompt, f"returned {len(items)} items for {len(group.responses)} responses")
        return [self._ruling(group.prompt, first, item) for first, item in enumerate(items)]

    def _ruling(self, prompt: Prompt, first: int, item: object) -> Ruling:
        if item is None:
            return Ruling(first=first, unscored="the function gave no score")
        if isinstance(item, Unscored):
            return Ruling(first=first, unscored=item.reason or "the function gave no score")
        if not isinstance(item, Real):
            self._refuse(prompt, f"gave {_shown(item)} as a score: it must be a number, None or Unscored('why')")
        value = float(item)
        if not math.isfinite(value):
            return Ruling(first=first, unscored=f"the function gave {value}, which is not finite")
        if self.lowest is not None and value < self.lowest:
            self._refuse(prompt, f"gave the score {value:g}, below judge.lowest = {self.lowest:g}")
        if self.highest is not None and value > self.highest:
            self._refuse(prompt, f"gave the score {value:g}, above judge.highest = {self.highest:g}")
        return Ruling(first=first, value=value)

    def _refuse(self, prompt: Prompt, problem: str) -> NoReturn:
        raise UsageError(f"function = {self.function.reference!r} ({self.function.where}) {problem} (prompt {prompt.id})")


def load(settings: PythonJudge, *, rho: float, today: date) -> PythonFunction:
    """Return the judge. `rho` and `today` alter nothing: the function scores each response as it likes."""
    return PythonFunction(function=user_function(settings.function), lowest=settings.lowest, highest=settings.highest)


def check(settings: PythonJudge, prompts: Iterable[Prompt]) -> None:
    """Import the function, without calling it. Raises UsageError where there is none."""
    user_function(settings.function)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
