"""From the settings of a judge made of judges to the judge: its parts made once each, its routes checked on the prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from functools import partial

from inward.config import CascadeJudge, CombinedJudge, PanelJudge, RoutedJudge
from inward.errors import MissingExtraError, UsageError
from inward.judging.combined.cascade import Cascade
from inward.judging.combined.panel import Panel
from inward.judging.combined.part import Part
from inward.judging.combined.routed import Routed
from inward.judging.judge import Judge
from inward.judging.make import check_judge, make_judge
from inward.records import Prompt

SHOWN = 8
"""How many names an error lists."""


def load(settings: CombinedJudge, *, rho: float, today: date) -> Cascade | Panel | Routed:
    """Return the judge with its parts. Parts of equal settings are made once, so that no model is held twice."""
    made: dict[str, Judge] = {}
    parts: dict[str, Part] = {}
    for key, part in settings.parts.items():
        same = part.model_dump_json()
        made[same] = made.get(same) or make_judge(part, rho=rho, today=today)
        parts[key] = Part(key=key, judge=made[same], prior=part.battle_prior)
    if isinstance(settings, CascadeJudge):
        return Cascade(first=parts["first"], then=parts["then"], sure=settings.sure, rho=rho)
    if isinstance(settings, PanelJudge):
        return Panel(members=tuple(parts.values()), rule=settings.rule)
    rules = [f"source={rule.source}" if rule.source is not None else "verifiable" for rule in settings.routes]
    return Routed(parts=tuple(parts.values()), route=partial(route_of, settings), rules=" ".join(rules))


def route_of(settings: RoutedJudge, prompt: Prompt) -> str | None:
    """Return which of `settings.parts` judges a prompt: the first route that takes it, else `otherwise`, if there is one."""
    for n, rule in enumerate(settings.routes):
        if bool(prompt.answers or prompt.constraints) if rule.verifiable else rule.source == prompt.source:
            return f"routes.{n}.judge"
    return "otherwise" if settings.otherwise is not None else None


def check(settings: CombinedJudge, prompts: Iterable[Prompt]) -> None:
    """Check each part on the prompts it will judge, and that routes take every prompt. Raises `UsageError`."""
    prompts = list(prompts)
    if isinstance(settings, RoutedJudge):
        _check_routes(settings, prompts)
    for key, part in settings.parts.items():
        own = [p for p in prompts if route_of(settings, p) == key] if isinstance(settings, RoutedJudge) else prompts
        try:
            check_judge(part, own)
        except MissingExtraError:
            raise
        except UsageError as error:
            raise UsageError(f"judge.{key}: {error}") from error


def _check_routes(settings: RoutedJudge, prompts: Sequence[Prompt]) -> None:
    sources = sorted({prompt.source for prompt in prompts})
    there = ", ".join(map(repr, sources[:SHOWN])) + (", ..." if len(sources) > SHOWN else "")
    for n, rule in enumerate(settings.routes):
        if rule.source is not None and rule.source not in sources:
            raise UsageError(f"judge.routes.{n}.source = {rule.source!r} is the source of no prompt; there are: {there}")
    astray = [prompt for prompt in prompts if route_of(settings, prompt) is None]
    if astray:
        from_where = ", ".join(map(repr, sorted({prompt.source for prompt in astray})[:SHOWN]))
        raise UsageError(
            f"{len(astray)} of {len(prompts)} prompts take none of judge.routes (from {from_where}). "
            "Set judge.otherwise, or add a route for them"
        )
