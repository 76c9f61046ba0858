"""The most that judging may ask for, told from a judge's settings before there is a response.

What is asked in the end is less: equal responses are judged once, a tournament stops when it knows its outcome, a cascade
hands on what its cheap judge is unsure of, verdicts in the cache are not asked again. Tokens are counted by the tokenizer of
the model that is trained, since a judge's own may be behind an endpoint, and requests that are repeated count once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inward.config import CombinedJudge, EndpointSettings, JudgeSettings, PairwiseJudge, RewardModelJudge, RoutedJudge
from inward.config.judging import Single
from inward.records import Prompt

CHARACTERS_PER_TOKEN = 3
"""Of the judge's own task, in English; most tokenizers take more characters to a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one judge is asked at most: `calls` of a `unit`, with the tokens that its model reads and writes, and their price.

    `judge` is its key in the recipe ("judge", "judge.then") with its kind.
    """

    judge: str
    calls: int
    unit: str
    read: int = 0
    written: int = 0
    money: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What there is to judge: `prompts` of at most `prompt_tokens`, each with `k` responses of at most `response_tokens`."""

    prompts: int
    k: int
    prompt_tokens: int
    response_tokens: int


def parts_of(settings: JudgeSettings, key: str) -> dict[str, Single]:
    """Return the single judges that a judge is or is made of, by their keys in the recipe."""
    if isinstance(settings, CombinedJudge):
        return {f"{key}.{name}": part for name, part in settings.parts.items()}
    return {key: settings}


def most_asked(settings: JudgeSettings, judged: Judged, prompts: Sequence[Prompt] | None, *, key: str = "judge") -> list[Asked]:
    """Return the most that each single judge is asked where all responses to a prompt are judged together.

    `prompts` tell which of several routes they take; without them each route may take all.
    """
    routed = _routed(settings, prompts, key) if isinstance(settings, RoutedJudge) and prompts is not None else {}
    return [
        _asked(f"{name} ({part.kind})", part, judged, routed.get(name, 0 if routed else judged.prompts))
        for name, part in parts_of(settings, key).items()
    ]


def most_asked_against(settings: PairwiseJudge, judged: Judged, answers: int, *, key: str = "judge") -> list[Asked]:
    """Return the most that a pairwise judge is asked where `k` responses meet up to `answers` of a baseline, in both orders."""
    matches = max(math.lcm(judged.k, count) for count in range(1, answers + 1))  # each meets as many as any other
    return [_battles(f"{key} ({settings.kind})", settings, judged, 2 * matches * judged.prompts)]


def _routed(settings: RoutedJudge, prompts: Sequence[Prompt], key: str) -> Mapping[str, int]:
    from inward.judging.combined.make import route_of

    counts = dict.fromkeys(parts_of(settings, key), 0)
    for prompt in prompts:
        if (part := route_of(settings, prompt)) is not None:
            counts[f"{key}.{part}"] += 1
    return counts


def _asked(name: str, settings: Single, judged: Judged, prompts: int) -> Asked:
    from inward.judging.pairwise.judge import most_battles

    if isinstance(settings, PairwiseJudge):
        return _battles(name, settings, judged, most_battles(settings, judged.k) * prompts)
    responses = prompts * judged.k
    read = (
        min(settings.max_tokens, judged.prompt_tokens + judged.response_tokens) if isinstance(settings, RewardModelJudge) else 0
    )
    return Asked(judge=name, calls=responses, unit="responses", read=responses * read)


def _battles(name: str, settings: PairwiseJudge, judged: Judged, battles: int) -> Asked:
    read = battles * (task_tokens(settings) + judged.prompt_tokens + 2 * judged.response_tokens)
    written = battles * (settings.max_tokens if settings.verdict == "text" else 1)
    money = 0.0 if settings.endpoint is None else _price(settings.endpoint, read, written)
    return Asked(judge=name, calls=battles, unit="battles", read=read, written=written, money=money)


def task_tokens(settings: PairwiseJudge) -> int:
    """Return about how many tokens a battle takes beside its question and its answers."""
    from inward.judging.pairwise.by_text import trial

    turns = trial(settings.form, settings.turn, "reasoned" if settings.verdict == "text" else "at once")
    return sum(len(turn["content"]) for turn in turns) // CHARACTERS_PER_TOKEN


def _price(endpoint: EndpointSettings, read: int, written: int) -> float:
    return (read * endpoint.price_in + written * endpoint.price_out) / 1e6
