"""Where in a run a piece of work belongs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The arm, the iteration and the stage that work is done and booked for."""

    arm: str
    iteration: int
    stage: str

    def __str__(self) -> str:
        return f"{self.arm} iteration {self.iteration}: {self.stage}"
