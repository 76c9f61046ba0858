"""Battles between the responses to each prompt, asked in rounds that are batched over all prompts.

Responses are met in sorted order, each different text once, so that no ruling depends on the order of the responses and one
verdict serves all copies of a text. Lengths are those of the group, in the unit that pairing will go by. A battle that ended
in an error is a ruling without a value: it is no tie, and it is not asked again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from inward.judging.judge import Group, Ruling
from inward.judging.pairwise.comparer import Battle, Comparer, Outcome
from inward.judging.tournament.adaptive import adaptive
from inward.judging.tournament.state import Battles, Scheme, TournamentState, initial_state, play
from inward.statistics import Floats


def run_tournament(groups: Sequence[Group], comparer: Comparer, scheme: Scheme | None = None) -> list[list[Ruling]]:
    """Return the battles of each group as rulings, in the order they were asked; `scheme` is `adaptive()` unless given.

    `first` and `second` are positions in the group; of equal responses the first stands for all. `detail` holds the `raw`
    text of the verdict, the `round`, and `p` where the judge has one (`Outcome`). A group without two different responses
    has no battles.
    """
    texts = [sorted(set(group.responses)) for group in groups]
    positions = [[group.responses.index(text) for text in own] for group, own in zip(groups, texts, strict=True)]
    rulings: list[list[Ruling]] = [[] for _ in groups]
    rounds = 0

    def decide(battles: Battles) -> Floats:
        nonlocal rounds
        triples = list(zip(*(part.tolist() for part in battles), strict=True))
        asked = [Battle(prompt=groups[g].prompt, first=texts[g][m], second=texts[g][n]) for g, m, n in triples]
        outcomes = comparer.compare(asked)
        assert len(outcomes) == len(asked), f"{comparer.name} answered {len(outcomes)} of {len(asked)} battles"
        for (g, m, n), outcome in zip(triples, outcomes, strict=True):
            rulings[g].append(_ruling(positions[g][m], positions[g][n], outcome, rounds))
        rounds += 1
        return np.array([math.nan if outcome.value is None else outcome.value for outcome in outcomes])

    if groups:
        play(_initial_state(groups, texts), scheme or adaptive(), decide)
    return rulings


def _initial_state(groups: Sequence[Group], texts: Sequence[Sequence[str]]) -> TournamentState:
    shape = len(groups), max(1, max(len(own) for own in texts))
    copies_GK, lengths_GK = np.zeros(shape, dtype=np.intp), np.zeros(shape)
    for row, (group, own) in enumerate(zip(groups, texts, strict=True)):
        counted = list(zip(group.responses, group.counted, strict=True))
        copies_GK[row, : len(own)] = [sum(count for response, count in counted if response == text) for text in own]
        lengths_GK[row, : len(own)] = [group.measured[group.responses.index(text)] for text in own]
    return initial_state(copies_GK, lengths_GK)


def _ruling(first: int, second: int, outcome: Outcome, round_: int) -> Ruling:
    value = outcome.value
    assert (value is None) == (outcome.error is not None), "an outcome has either a value or an error"
    assert value is None or math.isfinite(value), "who won a battle is a finite number"
    detail = {"raw": outcome.raw, "round": round_} | ({} if outcome.p is None else {"p": round(outcome.p, 6)})
    return Ruling(first=first, second=second, value=value, unscored=outcome.error, detail=json.dumps(detail))
