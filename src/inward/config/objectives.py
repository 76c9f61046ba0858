"""The objectives that a recipe can name: one line each, and what a recipe must know of them without loading anything.

A new objective is a function in `inward.training.loss`, or in a module of its own, and a line here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """`function` is where the objective is computed, as "module:name" (`inward.training.loss.ObjectiveFunction`).

    `beta` is the default of `training.beta`, `takes` names those of the settings in `OPTIONAL` that the function reads, and
    `needs_reference` says whether it compares the policy with a reference.
    """

    function: str
    beta: float = 0.1
    needs_reference: bool = True
    takes: tuple[str, ...] = ()


OPTIONAL = ("nll_weight", "gamma", "label_smoothing", "gap_offset")
"""The settings of `training` that only some objectives read."""

LOGISTIC = ("label_smoothing", "gap_offset")
LOSS = "inward.training.loss"

# The betas of 5 and 2 are for means over tokens, which are far smaller than sums.
OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(function=f"{LOSS}:dpo", takes=LOGISTIC),
    "irpo": Objective(function=f"{LOSS}:irpo", takes=(*LOGISTIC, "nll_weight")),
    "ipo": Objective(function=f"{LOSS}:ipo"),
    "hinge": Objective(function=f"{LOSS}:hinge", takes=("gap_offset",)),
    "dpo_norm": Objective(function=f"{LOSS}:dpo_norm", beta=5.0, takes=LOGISTIC),
    "simpo": Objective(function=f"{LOSS}:simpo", beta=2.0, needs_reference=False, takes=(*LOGISTIC, "gamma")),
}


def check_objective(name: str) -> str:
    """Return `name`. Raises ValueError where it is no objective."""
    if name not in OBJECTIVES:
        names = ", ".join(repr(known) for known in OBJECTIVES)
        raise ValueError(f"training.objective = {name!r} is not an objective: use one of {names}")
    return name


def check_taken(objective: str, settings: Iterable[str]) -> None:
    """Raise ValueError for one of these settings, all set by the recipe, that the objective does not read."""
    for name in settings:
        if name not in OBJECTIVES[objective].takes:
            others = ", ".join(repr(other) for other, kind in OBJECTIVES.items() if name in kind.takes)
            raise ValueError(
                f"training.{name} is set but training.objective = '{objective}' does not read it: leave it out, or use {others}"
            )
