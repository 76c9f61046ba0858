"""The seam between a stage and whatever judges: whole groups of responses to one prompt, strings only.

A judge never gets an `Output`, so no thought can reach it. What it could not score comes back as unscored with a reason;
it is never zero, never a tie and never skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from inward.judging.spending import Spending
from inward.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The responses to one prompt, in any order.

    `lengths` holds the length of each response in the unit that length control will use; None stands for characters.
    `copies` says how many outputs of the prompt have each response, for length control counts them all; None stands for one.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    lengths: tuple[float, ...] | None = None
    copies: tuple[int, ...] | None = None

    @property
    def measured(self) -> tuple[float, ...]:
        """The lengths, in characters where no others were given."""
        return tuple(float(len(text)) for text in self.responses) if self.lengths is None else self.lengths

    @property
    def counted(self) -> tuple[int, ...]:
        """The copies, one of each response where no others were given."""
        return (1,) * len(self.responses) if self.copies is None else self.copies


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What a judge said of the response at position `first`, or of `first` against `second` (positions in the group).

    `value` is None if and only if `unscored` says why. `detail` is a JSON object.
    """

    first: int
    second: int | None = None
    value: float | None = None
    unscored: str | None = None
    detail: str = "{}"


class Judge(Protocol):
    """Anything that scores responses. `name` identifies it, with its settings, in every verdict."""

    @property
    def name(self) -> str: ...

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        """Return one list of rulings a group, in the order of the groups. Every response is ruled on at least once."""
        ...

    def costs(self) -> Spending:
        """Return what all calls so far came to, those that raised included."""
        ...
