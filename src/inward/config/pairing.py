"""How scores become pairs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from inward.config.base import Settings, refuse_without_effect


class PairingSettings(Settings):
    """Scores to pairs. `rho` is the length control; `format_errors` the largest share of pairs with a malformed reject.

    `rho` is a number from 0 to 0.5, or "auto": the smallest of 0, 0.01, ... `rho_max` with which the chosen responses are on
    average no longer than the rejected ones. `thought_weight` is the same control of thoughts. `length` is the unit of both and
    of what an adaptive tournament and a cascade control for: characters, or tokens as the model sampled them.

    `rejected` is the output that the best one is paired with: the worst, or the one nearest to two standard deviations below
    the mean of its prompt's scores ("mu-2sigma", for many samples; the two are the same for up to five).
    """

    rho: Annotated[float, Field(ge=0.0, le=0.5)] | Literal["auto"] = 0.0
    rho_max: float = Field(default=0.5, gt=0.0, le=0.5)
    thought_weight: float = Field(default=0.0, ge=0.0)
    length: Literal["characters", "tokens"] = "characters"
    format_errors: float = Field(default=0.1, ge=0.0, le=1.0)
    min_gap: float = Field(default=0.0, ge=0.0)
    rejected: Literal["worst", "mu-2sigma"] = "worst"

    @model_validator(mode="after")
    def _no_idle_bound(self) -> Self:
        if self.rho != "auto":
            refuse_without_effect(self, ("rho_max",), "it bounds pairing.rho = 'auto'", "pairing")
        return self
