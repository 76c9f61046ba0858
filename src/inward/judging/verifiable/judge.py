"""The judge that needs no model: the share of a prompt's constraints that a response meets, or whether its answer is right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inward.config import VerifiableJudge
from inward.judging.judge import Group, Ruling
from inward.judging.spending import Spending
from inward.judging.verifiable import checkers
from inward.judging.verifiable.answers import compare
from inward.records import Prompt


@dataclass(frozen=True, slots=True)
class Verifiable:
    """Judge responses by their prompt's constraints and answers; each, and the answer as one more, counts the same.

    A prompt with nothing to check, or nothing that could be checked, leaves the response unscored. `detail` holds every
    constraint's strict and loose result, and the answer that was found. MissingExtraError without the `verifiable` extra,
    where a prompt has constraints.
    """

    settings: VerifiableJudge

    @property
    def name(self) -> str:
        return f"verifiable:{self.settings.strictness}"

    def costs(self) -> Spending:
        return Spending()

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        return [
            [self._rule(group.prompt, place, response) for place, response in enumerate(group.responses)] for group in groups
        ]

    def _rule(self, prompt: Prompt, place: int, response: str) -> Ruling:
        detail: dict[str, Any] = {}
        values: list[float] = []
        if prompt.constraints:
            checks = [checkers.check(constraint, response, prompt.text) for constraint in prompt.constraints]
            detail["constraints"] = [
                _entry(constraint.id, check) for constraint, check in zip(prompt.constraints, checks, strict=True)
            ]
            values += [value for value in map(self._value, checks) if value is not None]
        if prompt.answers:
            answered = compare(response, prompt.answers)
            detail["answer"] = {"found": answered.found, "correct": answered.correct}
            values.append(float(answered.correct))
        text = json.dumps(detail, sort_keys=True)
        if values:
            return Ruling(first=place, value=sum(values) / len(values), detail=text)
        return Ruling(first=place, unscored=_nothing(detail), detail=text)

    def _value(self, check: checkers.Check) -> float | None:
        if check.strict is None or check.loose is None:
            return None
        if self.settings.strictness == "strict":
            return float(check.strict)
        if self.settings.strictness == "loose":
            return float(check.loose)
        return (check.strict + check.loose) / 2


def load(settings: VerifiableJudge, *, rho: float) -> Verifiable:
    """Return the judge. `rho` alters nothing: each response is checked by itself."""
    return Verifiable(settings)


def check(settings: VerifiableJudge, prompts: Iterable[Prompt]) -> None:
    """Raise MissingExtraError where a prompt has constraints and their checkers are not installed."""
    if any(prompt.constraints for prompt in prompts):
        checkers.require()


def _entry(name: str, check: checkers.Check) -> dict[str, Any]:
    if check.unevaluated is not None:
        return {"id": name, "unevaluated": check.unevaluated}
    return {"id": name, "strict": check.strict, "loose": check.loose}


def _nothing(detail: dict[str, Any]) -> str:
    if not detail:
        return "the prompt has neither constraints nor answers"
    reasons = sorted({entry["unevaluated"] for entry in detail["constraints"]})
    return "no constraint could be evaluated: " + "; ".join(reasons)
