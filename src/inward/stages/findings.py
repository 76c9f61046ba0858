"""What is wrong with a run before it starts, all of it together: one mistake is not mended only to meet the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from inward.errors import InwardError, UsageError

T = TypeVar("T")


@dataclass(slots=True)
class Findings:
    """Errors of checks that were all made, and `notes`: what is no error, and a person should know of."""

    problems: list[InwardError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, check: Callable[[], T]) -> T | None:
        """Return what a check returns; None, with its error noted, where it raises one that a person can act on."""
        try:
            return check()
        except InwardError as error:
            # what two settings need is missing once, also where one of them said so with its own key before it
            if not any(str(known).endswith(str(error)) for known in self.problems):
                self.problems.append(error)
            return None

    def require_none(self) -> None:
        """Raise the problem that there is, or a UsageError that holds all of them."""
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            lines = "\n".join(f"  {number}. {error}" for number, error in enumerate(self.problems, 1))
            raise UsageError(f"{len(self.problems)} problems stand in the way:\n{lines}")
