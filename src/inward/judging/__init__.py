"""Outputs to verdicts to scores. `judge` is the seam; a judge sees prompts and responses as strings, never a thought."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from inward.config import JudgeSettings, VerifiableJudge
from inward.records import Prompt

if TYPE_CHECKING:
    from inward.judging.judge import Judge


def make_judge(settings: JudgeSettings) -> Judge:
    """Return the judge that a recipe asks for. A judge with a model loads it here, and a `UsageError` says what is amiss."""
    if isinstance(settings, VerifiableJudge):
        from inward.judging.verifiable import Verifiable

        return Verifiable(settings)
    from inward.judging.reward_model import RewardModel

    return RewardModel(settings)


def check_judge(settings: JudgeSettings, prompts: Iterable[Prompt]) -> None:
    """Raise what `make_judge` or its first judgement would of a missing package or model, at next to no cost."""
    if not isinstance(settings, VerifiableJudge):
        from inward.judging import reward_model

        reward_model.check(settings)
    elif any(prompt.constraints for prompt in prompts):
        from inward.judging import checkers

        checkers.require()


def lowest_score(settings: JudgeSettings) -> float | None:
    """Return the lowest score that the judge can give, or None where there is none (a reward model is unbounded)."""
    return 0.0 if isinstance(settings, VerifiableJudge) else None
