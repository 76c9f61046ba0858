"""IFEval's four accuracies from the verdicts of the verifiable judge (Zhou et al. 2023, arXiv 2311.07911, section 2.2).

Prompt level: the share of prompts of which every constraint is met. Instruction level: the share of all constraints. Both
strict and loose. A constraint that could not be evaluated is left out and counted, and so is its prompt at prompt level.
Responses that do not exist (format errors) have no verdict: whoever wants them counted as failures adds them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inward.records import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of one prompt, over all its responses. `responses` counts those of which every constraint was evaluated."""

    responses: int = 0
    responses_strict: int = 0
    responses_loose: int = 0
    instructions: int = 0
    instructions_strict: int = 0
    instructions_loose: int = 0
    unevaluated: int = 0


def ifeval_metrics(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Return the accuracies of `ifeval_figures` over all prompts; verdicts on prompts without constraints do not count."""
    return ifeval_figures(list(ifeval_by_prompt(verdicts).values()))


def ifeval_by_prompt(verdicts: Iterable[Verdict]) -> dict[str, Tally]:
    """Return each prompt's counts by prompt id: draw from them with replacement for an interval over prompts."""
    entries: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    for verdict in verdicts:
        constraints = json.loads(verdict.detail).get("constraints")
        if constraints:
            entries[verdict.prompt_id].append(constraints)
    return {prompt_id: _tally(responses) for prompt_id, responses in entries.items()}


def ifeval_figures(tallies: Sequence[Tally]) -> dict[str, float]:
    """Return prompt_strict, prompt_loose, instruction_strict, instruction_loose and unevaluated (a share of instructions).

    A figure with nothing to be a share of is left out. Every prompt weighs the same at prompt level, however many responses
    it has; at instruction level every constraint does.
    """
    figures: dict[str, float] = {}
    whole = [tally for tally in tallies if tally.responses]
    if whole:
        figures["prompt_strict"] = sum(tally.responses_strict / tally.responses for tally in whole) / len(whole)
        figures["prompt_loose"] = sum(tally.responses_loose / tally.responses for tally in whole) / len(whole)
    evaluated = sum(tally.instructions for tally in tallies)
    if evaluated:
        figures["instruction_strict"] = sum(tally.instructions_strict for tally in tallies) / evaluated
        figures["instruction_loose"] = sum(tally.instructions_loose for tally in tallies) / evaluated
    unevaluated = sum(tally.unevaluated for tally in tallies)
    if evaluated or unevaluated:
        figures["unevaluated"] = unevaluated / (evaluated + unevaluated)
    return figures


def _tally(responses: list[list[dict[str, Any]]]) -> Tally:
    checked = [[entry for entry in response if "unevaluated" not in entry] for response in responses]
    whole = [entries for entries, response in zip(checked, responses, strict=True) if len(entries) == len(response)]
    flat = [entry for entries in checked for entry in entries]
    return Tally(
        responses=len(whole),
        responses_strict=sum(all(entry["strict"] for entry in entries) for entries in whole),
        responses_loose=sum(all(entry["loose"] for entry in entries) for entries in whole),
        instructions=len(flat),
        instructions_strict=sum(entry["strict"] for entry in flat),
        instructions_loose=sum(entry["loose"] for entry in flat),
        unevaluated=sum(map(len, responses)) - len(flat),
    )
