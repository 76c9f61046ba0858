"""The limits that stop a run whose judge is broken: what is looked at, and what the person is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inward.config import JudgeLimits
from inward.errors import JudgeError
from inward.judging.audit import Audit, audit
from inward.judging.figures import Figure
from inward.records import Output, Score, Verdict

EXAMPLES = 3
WIDTH = 200
"""Characters of a raw verdict that an error shows, from its end: there a verdict stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A limit that a figure lies beyond. `shows` picks the verdicts that are examples of it."""

    limit: str
    bound: float
    figure: Figure
    says: str
    remedy: str
    shows: Callable[[Verdict], bool]


def check_limits(
    outputs: Sequence[Output], verdicts: Sequence[Verdict], scores: Sequence[Score], limits: JudgeLimits, *, where: str
) -> None:
    """Raise `JudgeError` where a figure of the judge lies beyond its limit beyond doubt; `where` says of which stage."""
    if len({verdict.prompt_id for verdict in verdicts}) < limits.prompts:
        return
    found = breaches(audit(outputs, verdicts, scores), limits)
    if not found:
        return
    lines = [f"{where}: the judge is broken, so the run stops before it trains on this:"]
    for breach in found:
        figure = breach.figure
        lines.append(
            f"  judge_limits.{breach.limit} = {breach.bound:g}: {breach.says} {figure.value:.3f} "
            f"[{figure.low:.3f}, {figure.high:.3f}] of {figure.n}. {breach.remedy}"
        )
        lines += [f"    {example}" for example in _examples(verdicts, breach.shows)]
    lines.append(
        "If the judge is as you want it, set another limit (1, or 0 for a min, is off) and run the same command again: limits "
        "alter nothing that is stored. Another judge needs a new run; `inward audit` measures one before."
    )
    raise JudgeError("\n".join(lines))


def breaches(found: Audit, limits: JudgeLimits) -> list[Breach]:
    """Return the limits that are broken, in the order of the settings."""
    leaning = _from_half(found.first_position)
    length = _absolute(found.spearman)
    rows = [
        _above(
            "max_errors",
            limits.max_errors,
            found.errors,
            "share of verdicts without a value",
            f"Most frequent: {next(iter(found.reasons), '')}. Raise judge.max_tokens if answers are cut off, or take a judge "
            "that keeps to its form.",
            lambda verdict: verdict.value is None,
        ),
        _above(
            "max_unscored",
            limits.max_unscored,
            found.unscored,
            "share of responses that the judge left without a score",
            "Look at the reasons with `inward audit`; a judge for other prompts than these leaves them unscored.",
            lambda verdict: verdict.value is None,
        ),
        _below(
            "min_consistency",
            limits.min_consistency,
            found.consistency,
            "share of pairs judged the same in both orders",
            "The judge goes by position: take a larger one, or another form of verdict.",
            lambda verdict: verdict.second is not None,
        ),
        _above(
            "max_one_position",
            limits.max_one_position,
            leaning,
            "share of battles won from one and the same position",
            "The judge goes by position: take a larger one, or another form of verdict.",
            lambda verdict: bool(verdict.second is not None and verdict.value),
        ),
        _above(
            "max_ties",
            limits.max_ties,
            found.ties,
            "share of battles that end in a tie",
            "Such verdicts rank nothing: offer no tie (judge.form = 'ab'), or take another judge.",
            lambda verdict: verdict.second is not None and verdict.value == 0,
        ),
        _above(
            "max_cycles",
            limits.max_cycles,
            found.cyclic_triples,
            "share of triples in which the majorities go in a circle",
            "A coin makes 0.25: the judge does not tell such responses apart.",
            lambda verdict: verdict.second is not None and verdict.value is not None,
        ),
        _above(
            "max_length_correlation",
            limits.max_length_correlation,
            length,
            "rank correlation of score and length within prompts (its size)",
            "The judge measures length: take another one; pairing.rho cannot mend that.",
            lambda verdict: verdict.value is not None,
        ),
    ]
    return [row for row in rows if row is not None]


Shows = Callable[[Verdict], bool]


def _above(limit: str, bound: float, figure: Figure, says: str, remedy: str, shows: Shows) -> Breach | None:
    if figure.low is None or figure.low <= bound:
        return None
    return Breach(limit=limit, bound=bound, figure=figure, says=says, remedy=remedy, shows=shows)


def _below(limit: str, bound: float, figure: Figure, says: str, remedy: str, shows: Shows) -> Breach | None:
    if figure.high is None or figure.high >= bound:
        return None
    return Breach(limit=limit, bound=bound, figure=figure, says=says, remedy=remedy, shows=shows)


def _from_half(share: Figure) -> Figure:
    """Return the larger of a share and what is missing to 1."""
    if share.value is None or share.low is None or share.high is None or share.value >= 0.5:
        return share
    return Figure(value=1 - share.value, low=1 - share.high, high=1 - share.low, n=share.n)


def _absolute(figure: Figure) -> Figure:
    if figure.value is None or figure.low is None or figure.high is None or figure.value >= 0:
        return figure
    return Figure(value=-figure.value, low=-figure.high, high=-figure.low, n=figure.n)


def _examples(verdicts: Sequence[Verdict], shows: Shows) -> list[str]:
    """Return a few verdicts as they came: what they were taken for, and the end of the judge's text."""
    chosen = [verdict for verdict in sorted(verdicts, key=lambda verdict: verdict.id) if shows(verdict)][:EXAMPLES]
    return [f"{'unscored' if v.value is None else v.value}: {v.unscored or ''} {_raw(v)!r}" for v in chosen]


def _raw(verdict: Verdict) -> str:
    detail = json.loads(verdict.detail)
    return str(detail.get("raw", verdict.detail))[-WIDTH:]
