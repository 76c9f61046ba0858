"""The limits that stop a run whose judge is broken: which figures they bound, and what the error says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from inward.config import JudgeLimits, JudgeSettings
from inward.errors import JudgeError
from inward.records import Output, Score, Verdict
from inward.trust.audit import Audit, audit
from inward.trust.figures import Figure

MAX_EXAMPLES = 3
MAX_CHARACTERS = 200
"""How much of a raw verdict an error shows: its end, where the verdict stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A limit: its setting, the figure it bounds, and what an error says of it. `shows` picks the verdicts shown as examples.

    The limit is an upper one, or a lower one where `least` is true.
    """

    limit: str
    bound: Callable[[JudgeLimits], float]
    figure: Callable[[Audit], Figure]
    says: str
    remedy: str
    shows: Callable[[Verdict], bool]
    least: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A limit that a figure lies beyond."""

    rule: Rule
    bound: float
    figure: Figure

    @property
    def limit(self) -> str:
        return self.rule.limit


def _battle(verdict: Verdict) -> bool:
    return verdict.second is not None and verdict.value is not None


def _unscored(verdict: Verdict) -> bool:
    return verdict.value is None


_POSITION: Final = "The judge goes by position: take a larger one, or another form of verdict."
RULES: Final = (
    Rule(
        limit="max_errors",
        bound=lambda limits: limits.max_errors,
        figure=lambda figures: figures.errors,
        says="share of verdicts without a value",
        remedy="Raise judge.max_tokens if answers are cut off, or take a judge that keeps to its form.",
        shows=_unscored,
    ),
    Rule(
        limit="max_unscored",
        bound=lambda limits: limits.max_unscored,
        figure=lambda figures: figures.unscored,
        says="share of responses that the judge left without a score",
        remedy="Take a judge for prompts such as these.",
        shows=_unscored,
    ),
    Rule(
        limit="min_consistency",
        bound=lambda limits: limits.min_consistency,
        figure=lambda figures: figures.consistency,
        says="share of pairs judged the same in both orders",
        remedy=_POSITION,
        shows=_battle,
        least=True,
    ),
    Rule(
        limit="max_one_position",
        bound=lambda limits: limits.max_one_position,
        figure=lambda figures: _mirrored(figures.first_position, about=0.5),
        says="share of battles won from one and the same position",
        remedy=_POSITION,
        shows=lambda verdict: _battle(verdict) and verdict.value != 0,
    ),
    Rule(
        limit="max_ties",
        bound=lambda limits: limits.max_ties,
        figure=lambda figures: figures.ties,
        says="share of battles that end in a tie",
        remedy="Such verdicts rank nothing: offer no tie (judge.form = 'ab'), or take another judge.",
        shows=lambda verdict: _battle(verdict) and verdict.value == 0,
    ),
    Rule(
        limit="max_cycles",
        bound=lambda limits: limits.max_cycles,
        figure=lambda figures: figures.cyclic_triples,
        says="share of triples in which the majorities go in a circle",
        remedy="A coin makes 0.25: the judge does not tell such responses apart.",
        shows=_battle,
    ),
    Rule(
        limit="max_length_correlation",
        bound=lambda limits: limits.max_length_correlation,
        figure=lambda figures: _mirrored(figures.length_bias, about=0.0),
        says="rank correlation of score and length within prompts (its size)",
        remedy="The judge measures length: take another one; pairing.rho cannot mend that.",
        shows=lambda verdict: verdict.value is not None,
    ),
)


def check_limits(
    outputs: Sequence[Output],
    verdicts: Sequence[Verdict],
    scores: Sequence[Score],
    limits: JudgeLimits,
    *,
    where: str,
    judge: JudgeSettings | None = None,
) -> None:
    """Raise `JudgeError` where a figure of the judge lies beyond its limit beyond doubt; `where` says of which stage.

    `judge` are the settings that made the verdicts (`audit`).
    """
    if len({verdict.prompt_id for verdict in verdicts}) < limits.prompts:
        return
    figures = audit(outputs, verdicts, scores, judge=judge)
    broken = breaches(figures, limits)
    if not broken:
        return
    lines = [f"{where}: the judge is broken, so the run stops before it trains on this:"]
    for breach in broken:
        figure, rule = breach.figure, breach.rule
        lines.append(
            f"  judge_limits.{rule.limit} = {breach.bound:g}: {rule.says} {figure.value:.3f} "
            f"[{figure.low:.3f}, {figure.high:.3f}] of {figure.n}. {rule.remedy}"
        )
        lines += [f"    {example}" for example in _examples(verdicts, rule)]
    if figures.reasons:
        lines += [
            "  why there is no value:",
            *(f"    {count} x {reason}" for reason, count in list(figures.reasons.items())[:5]),
        ]
    lines.append(
        "If the judge is as you want it, set another limit (1, or 0 for a min, is off) and run the same command again: limits "
        "alter nothing that is stored. Another judge needs a new run; `inward audit` measures one before."
    )
    raise JudgeError("\n".join(lines))


def breaches(figures: Audit, limits: JudgeLimits) -> list[Breach]:
    """Return the limits that are broken, in the order of the settings."""
    broken = []
    for rule in RULES:
        figure, bound = rule.figure(figures), rule.bound(limits)
        if figure.low is None or figure.high is None:
            continue
        if figure.high < bound if rule.least else figure.low > bound:
            broken.append(Breach(rule=rule, bound=bound, figure=figure))
    return broken


def _mirrored(figure: Figure, *, about: float) -> Figure:
    """Return a figure as it is where it lies above a value, else its mirror image there."""
    if figure.value is None or figure.low is None or figure.high is None or figure.value >= about:
        return figure
    return Figure(value=2 * about - figure.value, low=2 * about - figure.high, high=2 * about - figure.low, n=figure.n)


def _examples(verdicts: Sequence[Verdict], rule: Rule) -> list[str]:
    """Return a few verdicts as they came: what they were taken for, and the end of the judge's text."""
    chosen = [verdict for verdict in sorted(verdicts, key=lambda verdict: verdict.id) if rule.shows(verdict)][:MAX_EXAMPLES]
    return [f"{'unscored' if v.value is None else v.value}: {v.unscored or ''} {_raw(v)!r}" for v in chosen]


def _raw(verdict: Verdict) -> str:
    detail = json.loads(verdict.detail)
    return str(detail.get("raw", verdict.detail))[-MAX_CHARACTERS:]
