"""The judge that needs no model: it scores a response by its prompt's constraints and by whether its answer is right.

A prompt makes demands: each of its constraints is one, and its reference answers, of which any will do, are one more.

- With `require = "share"` the score is the share of the demands that the response meets, so an exact answer weighs as much as
  one constraint. With `require = "all"` it is 1 where the response meets all of them, and else 0.
- `strictness` says how constraints are read: strictly, loosely (`checkers`), or as the mean of the scores of both readings.
- A demand counts for all responses to a prompt or for none. A constraint that no response could meet or miss, because of what
  it is or because this machine lacks data, is dropped for the whole group. A constraint that one response made impossible to
  check counts as failed for that response: else a model would learn to write what the checkers cannot read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import fmean
from typing import Any

from inward.config import VerifiableJudge
from inward.judging.judge import Group, Ruling
from inward.judging.spending import Spending
from inward.judging.verifiable import checkers, expressions
from inward.judging.verifiable.answers import is_expression, match_answer
from inward.judging.verifiable.checkers import Check, check_responses
from inward.records import Prompt


@dataclass(frozen=True, slots=True)
class Verifiable:
    """Score responses by the demands of their prompts.

    A prompt without demands, or with none that could be checked, leaves its responses unscored. `detail` holds every
    constraint's strict and loose result, with the reason where it could not be checked, and the answer that was read.
    MissingExtraError without the `verifiable` extra, where a prompt has constraints or answers in LaTeX.
    """

    settings: VerifiableJudge

    @property
    def name(self) -> str:
        return f"verifiable:{self.settings.strictness}" + (":all" if self.settings.require == "all" else "")

    def costs(self) -> Spending:
        return Spending()

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        return [self._judge_group(group) for group in groups]

    def _judge_group(self, group: Group) -> list[Ruling]:
        checks = [check_responses(constraint, group.responses, group.prompt.text) for constraint in group.prompt.constraints]
        return [
            self._rule(group.prompt, index, response, [of_constraint[index] for of_constraint in checks])
            for index, response in enumerate(group.responses)
        ]

    def _rule(self, prompt: Prompt, index: int, response: str, checks: Sequence[Check]) -> Ruling:
        detail: dict[str, Any] = {}
        strict = [check.strict for check in checks if check.strict is not None]
        loose = [check.loose for check in checks if check.loose is not None]
        if prompt.constraints:
            detail["constraints"] = [
                _entry(constraint.id, check) for constraint, check in zip(prompt.constraints, checks, strict=True)
            ]
        if prompt.answers:
            match = match_answer(response, prompt.answers)
            detail["answer"] = {"extracted": match.extracted, "correct": match.correct}
            strict.append(match.correct)
            loose.append(match.correct)
        text = json.dumps(detail, sort_keys=True)
        if not strict:
            return Ruling(first=index, unscored=_reason_unscored(detail), detail=text)
        return Ruling(first=index, value=self._score(strict, loose), detail=text)

    def _score(self, strict: Sequence[bool], loose: Sequence[bool]) -> float:
        """Return the score from which demands are met in the strict and in the loose reading."""
        readings = {"strict": [strict], "loose": [loose], "mean": [strict, loose]}[self.settings.strictness]
        if self.settings.require == "all":
            return fmean(all(reading) for reading in readings)
        return fmean(met for reading in readings for met in reading)


def load(settings: VerifiableJudge, *, rho: float, today: date) -> Verifiable:
    """Return the judge. `rho` and `today` alter nothing: each response is checked by itself."""
    return Verifiable(settings)


def check(settings: VerifiableJudge, prompts: Iterable[Prompt]) -> None:
    """Raise MissingExtraError where these prompts make demands that need the `verifiable` extra, and it is absent."""
    for prompt in prompts:
        if prompt.constraints:
            checkers.require_packages()
        if any(map(is_expression, prompt.answers)):
            expressions.require_packages()


def _entry(name: str, check: Check) -> dict[str, Any]:
    if check.dropped:
        return {"id": name, "unevaluated": check.reason}
    result = {"id": name, "strict": check.strict, "loose": check.loose}
    return result if check.reason is None else result | {"failed": check.reason}


def _reason_unscored(detail: dict[str, Any]) -> str:
    if not detail:
        return "the prompt has neither constraints nor answers"
    reasons = sorted({entry["unevaluated"] for entry in detail["constraints"]})
    return "no constraint could be evaluated: " + "; ".join(reasons)
