"""Judges made of judges, one level deep: a cascade, a panel, routes."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from inward.config.base import Settings, kinds_of
from inward.config.judging import JudgeFacts, Single, SingleJudge


def _one_prior(parts: dict[str, Single]) -> None:
    """Refuse battles of two priors: strengths are fitted afterwards, from the battles alone, under one."""
    priors = {key: prior for key, part in parts.items() if (prior := part.battle_prior) is not None}
    if len(set(priors.values())) > 1:
        named = ", ".join(f"judge.{key}.prior = {prior:g}" for key, prior in priors.items())
        raise ValueError(f"{named}: the battles of one recipe are fitted under one prior; give both the same")


def _different(parts: dict[str, Single]) -> None:
    for (first, judge), (second, other) in combinations(parts.items(), 2):
        if judge == other:
            raise ValueError(f"judge.{first} and judge.{second} are the same judge: change or drop one")


def _any_holds_model(parts: dict[str, Single]) -> bool:
    return any(part.holds_model for part in parts.values())


def _first_prior(parts: dict[str, Single]) -> float | None:
    return next((prior for part in parts.values() if (prior := part.battle_prior) is not None), None)


class CascadeJudge(JudgeFacts):
    """A cheap judge, `first`, and a dear one, `then`, that judges the prompts on which the cheap one is unsure.

    It is sure where it scored every response, three at least, and where in s (N(score) less the length control) the best leads
    the next, and the last but one the worst, by `sure` or more: standard deviations of the prompt's scores. With K = 8 normal
    scores, 0.2 hands on two prompts in five. All verdicts on a prompt are those of one judge.
    """

    kind: Literal["cascade"]
    first: SingleJudge
    then: SingleJudge
    sure: float = Field(default=0.2, ge=0.0)

    @property
    def parts(self) -> dict[str, Single]:
        return {"first": self.first, "then": self.then}

    @property
    def holds_model(self) -> bool:
        return _any_holds_model(self.parts)

    @property
    def battle_prior(self) -> float | None:
        return _first_prior(self.parts)

    @property
    def incomparable(self) -> str:
        return "which of its judges rules depends on the responses, so that one prompt has another scale from model to model"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _different(self.parts)
        _one_prior(self.parts)
        return self


class PanelJudge(JudgeFacts):
    """Several judges: a response's score is the mean over `members` of N(score), each normalised within the prompt.

    What one member left unscored is unscored. With rule "agree", so are all responses to a prompt of which some member does
    not put the best by that mean above the worst.
    """

    kind: Literal["panel"]
    members: tuple[SingleJudge, ...] = Field(min_length=2)
    rule: Literal["average", "agree"] = "average"

    @property
    def parts(self) -> dict[str, Single]:
        return {f"members.{n}": member for n, member in enumerate(self.members)}

    @property
    def holds_model(self) -> bool:
        return _any_holds_model(self.parts)

    @property
    def incomparable(self) -> str:
        return "its scores are normalised within each prompt of each model, so that every model has the same mean"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _different(self.parts)
        return self


class Route(Settings):
    """Prompts of one `source` (a file's name, a dataset's path, "tasks"), or those with answers or constraints to check."""

    source: str | None = None
    verifiable: bool = False
    judge: SingleJudge

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.source is None) != self.verifiable:
            raise ValueError("each of judge.routes needs exactly one of source = '...' and verifiable = true")
        return self


class RoutedJudge(JudgeFacts):
    """Every prompt has the judge of the first of `routes` that takes it, else `otherwise`.

    A prompt that none takes is an error before anything runs, and so is a `source` of no prompt.
    """

    kind: Literal["routed"]
    routes: tuple[Route, ...] = Field(min_length=1)
    otherwise: SingleJudge | None = None

    @property
    def parts(self) -> dict[str, Single]:
        routes = {f"routes.{n}.judge": route.judge for n, route in enumerate(self.routes)}
        return routes | ({"otherwise": self.otherwise} if self.otherwise else {})

    @property
    def holds_model(self) -> bool:
        return _any_holds_model(self.parts)

    @property
    def battle_prior(self) -> float | None:
        return _first_prior(self.parts)

    @property
    def scale(self) -> tuple[float, float] | None:
        first, *others = [part.scale for part in self.parts.values()]
        return first if all(other == first for other in others) else None

    @property
    def incomparable(self) -> str:
        if self.scale is not None:
            return ""
        return "its routes score on different scales, and the judge with the largest numbers would decide a mean over prompts"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        rules: dict[tuple[str | None, bool], int] = {}
        for n, route in enumerate(self.routes):
            earlier = rules.setdefault((route.source, route.verifiable), n)
            if earlier != n:
                raise ValueError(f"judge.routes.{earlier} and judge.routes.{n} take the same prompts: drop one")
        _one_prior(self.parts)
        return self


CombinedJudge = CascadeJudge | PanelJudge | RoutedJudge
JudgeSettings = Annotated[Single | CombinedJudge, Field(discriminator="kind")]
COMBINED = kinds_of(CombinedJudge)
