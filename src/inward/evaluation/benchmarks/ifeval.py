"""IFEval's accuracies by prompt and by constraint (Zhou et al. 2023, arXiv 2311.07911, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

from inward.judging.verifiable.ifeval import ifeval_by_prompt
from inward.records import Output, Prompt, Verdict


def accuracies(
    prompts: Sequence[Prompt], outputs: Sequence[Output], verdicts: Sequence[Verdict]
) -> dict[str, dict[str, float]]:
    """Return, for strict and loose, each prompt's share of outputs that met every constraint, and of constraints met.

    `prompt_*` is IFEval's prompt-level accuracy once averaged; `constraint_*` weighs prompts, not constraints, equally.
    A prompt of which no output could be checked is left out.
    """
    tallies = ifeval_by_prompt(verdicts)
    malformed = {prompt.id: 0 for prompt in prompts}
    for output in outputs:
        malformed[output.prompt_id] += output.response is None
    shares: dict[str, dict[str, float]] = {
        key: {} for key in ("prompt_strict", "prompt_loose", "constraint_strict", "constraint_loose")
    }
    for prompt in prompts:
        tally, broken = tallies.get(prompt.id), malformed[prompt.id]
        responses = broken + (tally.responses if tally else 0)
        constraints = broken * len(prompt.constraints) + (tally.instructions if tally else 0)
        if responses:
            shares["prompt_strict"][prompt.id] = (tally.responses_strict if tally else 0) / responses
            shares["prompt_loose"][prompt.id] = (tally.responses_loose if tally else 0) / responses
        if constraints:
            shares["constraint_strict"][prompt.id] = (tally.instructions_strict if tally else 0) / constraints
            shares["constraint_loose"][prompt.id] = (tally.instructions_loose if tally else 0) / constraints
    return shares
