"""The counts behind IFEval's four accuracies, from the verdicts of the verifiable judge.

Source: Zhou et al. 2023, arXiv 2311.07911, section 2.2.

Prompt level: the share of prompts of which a response meets every constraint. Instruction level: the share of all constraints.
Both strict and loose. A constraint that was dropped for every response counts as unevaluated, and so do the responses to its
prompt at prompt level. A constraint that a response made impossible to check is one it does not meet. Responses that do not
exist (format errors) have no verdict: whoever wants them counted as failures adds them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
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


def ifeval_by_prompt(verdicts: Iterable[Verdict]) -> dict[str, Tally]:
    """Return each prompt's counts by prompt id; verdicts on prompts without constraints do not count."""
    entries: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    for verdict in verdicts:
        constraints = json.loads(verdict.detail).get("constraints")
        if constraints:
            entries[verdict.prompt_id].append(constraints)
    return {prompt_id: _tally(responses) for prompt_id, responses in entries.items()}


def _tally(responses: list[list[dict[str, Any]]]) -> Tally:
    checked = [[entry for entry in response if "unevaluated" not in entry] for response in responses]
    complete = [entries for entries, response in zip(checked, responses, strict=True) if len(entries) == len(response)]
    flat = [entry for entries in checked for entry in entries]
    return Tally(
        responses=len(complete),
        responses_strict=sum(all(entry["strict"] for entry in entries) for entries in complete),
        responses_loose=sum(all(entry["loose"] for entry in entries) for entries in complete),
        instructions=len(flat),
        instructions_strict=sum(entry["strict"] for entry in flat),
        instructions_loose=sum(entry["loose"] for entry in flat),
        unevaluated=sum(map(len, responses)) - len(flat),
    )
