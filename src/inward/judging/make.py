"""From the settings of a judge to the judge, and what a recipe can know of it before it is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from inward.config import (
    CombinedJudge,
    JudgeSettings,
    PairwiseJudge,
    RewardModelJudge,
    RoutedJudge,
    SingleJudge,
    VerifiableJudge,
)
from inward.records import Prompt

if TYPE_CHECKING:
    from inward.judging.judge import Judge


def make_judge(settings: JudgeSettings, *, rho: float = 0.0) -> Judge:
    """Return the judge that a recipe asks for. A judge with a model loads it here, and a `UsageError` says what is amiss.

    `rho` is the length control that the scores will meet: an adaptive tournament asks what is needed to know its outcome, and
    a cascade whether the cheap judge knows it.
    """
    if isinstance(settings, VerifiableJudge):
        from inward.judging.verifiable.judge import Verifiable

        return Verifiable(settings)
    if isinstance(settings, RewardModelJudge):
        from inward.judging.reward_model.judge import RewardModel

        return RewardModel(settings)
    if isinstance(settings, PairwiseJudge):
        from inward.judging.pairwise import judge as battles

        return battles.load(settings, rho=rho)
    from inward.judging.combined import make as combining

    return combining.combine(settings, lambda part: make_judge(part, rho=rho), rho=rho)


def check_judge(settings: JudgeSettings, prompts: Iterable[Prompt]) -> None:
    """Raise what `make_judge` or its first judgement would of a missing package, model, key or route, at next to no cost."""
    if isinstance(settings, CombinedJudge):
        from inward.judging.combined import make as combining

        combining.check(settings, list(prompts), check_judge)
    elif isinstance(settings, RewardModelJudge):
        from inward.judging.reward_model import judge as reward_model

        reward_model.check(settings)
    elif isinstance(settings, PairwiseJudge):
        from inward.judging.pairwise import judge as battles

        battles.check(settings)
    elif any(prompt.constraints for prompt in prompts):
        from inward.judging.verifiable import checkers

        checkers.require()


def loads_model(settings: JudgeSettings) -> bool:
    """Say whether the judge holds a model in the process that judges: one to isolate, and to run several of."""
    return any(
        part.path is not None if isinstance(part, PairwiseJudge) else isinstance(part, RewardModelJudge)
        for part in _singles(settings)
    )


def lowest_score(settings: JudgeSettings) -> float | None:
    """Return the lowest score that the judge can give, or None where there is none (strengths are unbounded too)."""
    if isinstance(settings, CombinedJudge) and not isinstance(settings, RoutedJudge):
        return None
    return 0.0 if all(part.scores_shares for part in _singles(settings)) else None


def battle_prior(settings: JudgeSettings) -> float | None:
    """Return the prior of the strengths that the judge's battles are fitted with, or None where it leaves no battles."""
    if isinstance(settings, CombinedJudge) and settings.kind == "panel":  # its battles are votes by the time it rules
        return None
    return next((part.prior for part in _singles(settings) if isinstance(part, PairwiseJudge)), None)


def _singles(settings: JudgeSettings) -> list[SingleJudge]:
    return list(settings.parts.values()) if isinstance(settings, CombinedJudge) else [settings]
