"""What a finished run came to: `summary.json`, derived from the run directory alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inward.config import Recipe
from inward.runs.directory import RunDir
from inward.runs.ledger import Cost, seconds_by_stage, spent_on_judging
from inward.storage import read_json

FIGURES = (
    "score",
    "low",
    "high",
    "prompts",
    "outputs",
    "unscored",
    "format_errors",
    "unresolved",
    "thought_length",
    "response_length",
    "metrics",
)


def summary(run: RunDir, recipe: Recipe, costs: Sequence[Cost]) -> dict[str, Any]:
    """Return seconds by stage, every arm's figures by iteration, and the arms against each other.

    `judging` is what asking judges took: answers, tokens and money; verdicts from the cache took none. Lengths are in
    characters; intervals are 95% bootstrap intervals over validation prompts.
    """
    return {
        "seconds": {name: round(seconds, 2) for name, seconds in seconds_by_stage(map(_merged, costs)).items()},
        "tokens": sum(cost.tokens for cost in costs),
        "judge_calls": sum(cost.judge_calls for cost in costs),
        "judging": spent_on_judging(costs),
        "arms": {arm: [_iteration(run.iteration(arm, t), t) for t in run.iterations(arm)] for arm in recipe.arms},
        "thinking_minus_direct": [
            {"iteration": int(path.stem[5:]), **read_json(path)}
            for path in sorted((run.root / "comparison").glob("iter_*.json"), key=lambda path: int(path.stem[5:]))
        ],
    }


def _merged(cost: Cost) -> Cost:
    """Book the sampling and judging of every validated checkpoint under one name."""
    for purpose in ("validation", "benchmark"):
        if purpose in cost.stage:
            return replace(cost, stage=purpose)
    return cost


def _iteration(folder: Path, t: int) -> dict[str, Any]:
    row: dict[str, Any] = {"iteration": t, "finished": (folder / "evaluation.json").exists()}
    if row["finished"]:
        stored = read_json(folder / "evaluation.json")
        chosen = stored["evaluations"].get(stored["chosen"])  # none where the iteration was not validated
        row |= {"checkpoint": stored["chosen"], **({key: chosen[key] for key in FIGURES} if chosen else {})}
        row |= {key: stored[key] for key in ("without_pairs_in_a_row",) if key in stored}
    for name in ("judges.json", "pairing.json", "reference.json"):
        if (folder / name).exists():
            row |= read_json(folder / name)
    return row
