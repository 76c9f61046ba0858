"""From one judge's rulings to one score a response, whichever kind of judge it is: what judges made of judges go by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inward.judging.judge import Group, Judge, Ruling
from inward.judging.pairwise.judge import Judged, strengths_of_prompts
from inward.judging.spending import Spending
from inward.records import Verdict


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


def scores_of(groups: Sequence[Group], rulings: Sequence[Sequence[Ruling]], prior: float | None) -> list[list[Judged]]:
    """Return for each response of each group its score, or None and why it has none: its value, or its strength in battle.

    Copies of a text, of which battles name the first, all have its score.
    """
    fought = [any(ruling.second is not None for ruling in ruled) for ruled in rulings]
    battles = [
        _battle(at, ruling) for at, ruled in enumerate(rulings) if fought[at] for ruling in ruled if ruling.second is not None
    ]
    strengths = strengths_of_prompts(battles, prior)
    found: list[list[Judged]] = []
    for at, (group, ruled) in enumerate(zip(groups, rulings, strict=True)):
        if fought[at]:
            found.append([strengths[_fighter(at, group.responses.index(text))] for text in group.responses])
        else:
            value_of = {ruling.first: (ruling.value, ruling.unscored) for ruling in ruled}
            found.append([value_of[place] for place in range(len(group.responses))])
    return found


def _battle(group: int, ruling: Ruling) -> Verdict:
    assert ruling.second is not None
    first, second = _fighter(group, ruling.first), _fighter(group, ruling.second)
    return Verdict(
        id=f"{first}-{second}",
        prompt_id=f"{group:09d}",
        judge="",
        first=first,
        second=second,
        value=ruling.value,
        unscored=ruling.unscored,
    )


def _fighter(group: int, place: int) -> str:
    return f"{group:09d}.{place:09d}"
