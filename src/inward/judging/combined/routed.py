"""Routes: every prompt has the judge that its source, or what there is to check about it, asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inward.judging.combined.part import Part
from inward.judging.judge import Group, Ruling
from inward.judging.spending import Spending, total
from inward.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Every group is judged by the part that `route` names for its prompt, and by no other.

    Each ruling's detail says under `ruled_by` whose it is.
    """

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
        rulings: dict[int, list[Ruling]] = {}
        for part in self.parts:
            routed = [index for index, key in enumerate(keys) if key == part.key]
            judged = part.judge.judge([groups[index] for index in routed])
            rulings |= {index: [part.mark(r) for r in own] for index, own in zip(routed, judged, strict=True)}
        assert len(rulings) == len(groups), "a prompt that no route takes was refused before anything ran"
        return [rulings[index] for index in range(len(groups))]
