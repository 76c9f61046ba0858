"""The prompts of an iteration, stored as they were dealt out."""

from __future__ import annotations

from collections.abc import Sequence

from inward.records import Prompt
from inward.stages.run import ArmIteration


def keep_prompts(now: ArmIteration, prompts: Sequence[Prompt]) -> None:
    """Store the prompts, so that a run directory says by itself what its outputs answer."""
    now.complete_at_once("prompts", Prompt, prompts, lambda items: list(items), identify=lambda prompt: prompt.id)
