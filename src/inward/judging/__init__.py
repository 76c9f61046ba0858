"""Outputs to verdicts to scores. `judge` is the seam; a judge sees prompts and responses as strings, never a thought."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from inward.config import JudgeSettings, PairwiseJudge, RewardModelJudge, VerifiableJudge
from inward.records import Prompt

if TYPE_CHECKING:
    from inward.judging.judge import Judge


def make_judge(settings: JudgeSettings, *, rho: float = 0.0) -> Judge:
    """Return the judge that a recipe asks for. A judge with a model loads it here, and a `UsageError` says what is amiss.

    `rho` is the length control that the scores will meet: an adaptive tournament asks what is needed to know its outcome.
    """
    if isinstance(settings, VerifiableJudge):
        from inward.judging.verifiable import Verifiable

        return Verifiable(settings)
    if isinstance(settings, RewardModelJudge):
        from inward.judging.reward_model import RewardModel

        return RewardModel(settings)
    from inward.judging import battles

    return battles.load(settings, rho=rho)


def check_judge(settings: JudgeSettings, prompts: Iterable[Prompt]) -> None:
    """Raise what `make_judge` or its first judgement would of a missing package, model or key, at next to no cost."""
    if isinstance(settings, RewardModelJudge):
        from inward.judging import reward_model

        reward_model.check(settings)
    elif isinstance(settings, PairwiseJudge):
        from inward.judging import battles

        battles.check(settings)
    elif any(prompt.constraints for prompt in prompts):
        from inward.judging import checkers

        checkers.require()


def loads_model(settings: JudgeSettings) -> bool:
    """Say whether the judge holds a model in the process that judges: one to isolate, and to run several of."""
    if isinstance(settings, PairwiseJudge):
        return settings.path is not None
    return isinstance(settings, RewardModelJudge)


def lowest_score(settings: JudgeSettings) -> float | None:
    """Return the lowest score that the judge can give, or None where there is none (strengths are unbounded too)."""
    if isinstance(settings, RewardModelJudge):
        return 0.0 if settings.output == "sigmoid" else None
    return 0.0 if isinstance(settings, VerifiableJudge) else None
