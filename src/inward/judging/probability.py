"""Verdicts by the probability of the verdict's tokens: no text is written, one look at the model's next token decides.

The model is asked for its verdict at once. The probabilities of the offered labels are normalised over these labels; those
that name the same winner (Arena-Hard's strengths) are added. The likeliest winner has the battle, a tie only where the form
offers one. A judge that reasons first may judge better; this one costs a small part of it, never answers unreadably, and its
`p` says how sure it is.

A judge that is shown one text twice has no reason to prefer either place; what it says instead is its taste for a place. With
`calibrate` the mean of that taste, as met with either response against itself, is taken off the logarithms: half the
difference between a label and its mirror, `A>B` and `B>A`. It costs one look more for each response. (Zhao et al. 2021, arXiv
2102.09690, calibrate by an input without content; here the content stays, and only the place is without meaning.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from inward.config import VerdictForm
from inward.judging.compare import Battle, Outcome, Weigher, Weights
from inward.judging.pairwise import Wording, conversation, wording_id
from inward.judging.verdicts import LABELS
from inward.records import Prompt
from inward.thought import Turn

_SWAP = str.maketrans("AB", "BA")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityComparer:
    """A `Comparer` that asks a weigher how likely each verdict of the form is."""

    weigher: Weigher
    form: VerdictForm = "ab"
    turn: Turn = "system"
    calibrate: bool = False
    _tastes: dict[tuple[str, str], Weights] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        how = f"{'calibrated ' if self.calibrate else ''}probability"
        return f"pairwise:{self.form}:{self.turn}:{how}:{wording_id(self.form, self._wording)}:{self.weigher.name}"

    @property
    def _wording(self) -> Wording:
        return "bare" if self.weigher.bare else "at once"

    def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
        """Return one outcome a battle, in order. Labels that cannot be told apart are an error, never a tie."""
        if not battles:
            return []
        unmet = self._unmet(battles) if self.calibrate else {}
        asked = [*battles, *(Battle(prompt=prompt, first=text, second=text) for (_, text), prompt in unmet.items())]
        conversations = [conversation(battle, self.form, self.turn, self._wording) for battle in asked]
        weighed = self.weigher.weigh(conversations, tuple(LABELS[self.form]))
        assert len(weighed) == len(asked), f"{self.weigher.name} weighed {len(weighed)} of {len(asked)} conversations"
        own, alone = weighed[: len(battles)], dict(zip(unmet, weighed[len(battles) :], strict=True))
        if not self.calibrate:
            return [decide(weights, self.form) for weights in own]
        self._tastes.update({key: weights for key, weights in alone.items() if weights.error is None})
        tastes = self._tastes | alone
        return [
            decide(calibrated(weights, [tastes[b.prompt.text, text] for text in (b.first, b.second)], self.form), self.form)
            for weights, b in zip(own, battles, strict=True)
        ]

    def _unmet(self, battles: Sequence[Battle]) -> dict[tuple[str, str], Prompt]:
        """Return the responses, by prompt, for which the taste for a place is not known yet."""
        met = {(battle.prompt.text, text): battle.prompt for battle in battles for text in (battle.first, battle.second)}
        return {key: prompt for key, prompt in met.items() if key not in self._tastes}


def calibrated(weights: Weights, tastes: Sequence[Weights], form: VerdictForm) -> Weights:
    """Return the weights of a battle with the mean of some tastes for a place taken off, or an error where one is not known."""
    if weights.low is None or weights.high is None:
        return weights
    labels = list(LABELS[form])
    turned = [label.translate(_SWAP) for label in labels]
    mirror = [labels.index(other) if other in labels else at for at, other in enumerate(turned)]  # a tie is its own
    shift = [0.0] * len(labels)
    for taste in tastes:
        if taste.low is None or taste.low != taste.high or -math.inf in taste.low:
            error = f"the judge's taste for a place is not known: {taste.error or 'a label is not among the likeliest tokens'}"
            return Weights(low=None, high=None, error=error, raw=weights.raw)
        for at, other in enumerate(mirror):
            shift[at] -= (taste.low[at] - taste.low[other]) / 2 / len(tastes)
    low, high = (tuple(one + by for one, by in zip(side, shift, strict=True)) for side in (weights.low, weights.high))
    return Weights(low=low, high=high, raw=weights.raw)


def decide(weights: Weights, form: VerdictForm) -> Outcome:
    """Return the outcome that is likelier than every other, whatever the labels' values within their bounds are.

    For a label without a known value, `p` is computed with the highest it can have, which brings `p` nearer to one half.
    """
    if weights.low is None or weights.high is None:
        assert weights.error, "a weighing has either values or an error"
        return Outcome(value=None, error=weights.error, raw=weights.raw)
    if not all(high < math.inf for high in weights.high) or all(high == -math.inf for high in weights.high):
        return Outcome(value=None, error="the model's probabilities are not numbers", raw=weights.raw)
    top = max(weights.high)
    low, high = (dict.fromkeys(LABELS[form].values(), 0.0) for _ in range(2))
    for value, least, most in zip(LABELS[form].values(), weights.low, weights.high, strict=True):
        low[value] += math.exp(least - top)
        high[value] += math.exp(most - top)
    best = max(low, key=lambda value: low[value])
    if any(most >= low[best] for value, most in high.items() if value != best):
        return Outcome(value=None, error="the offered verdicts cannot be told apart by their probabilities", raw=weights.raw)
    p = (high[1.0] + 0.5 * high.get(0.0, 0.0)) / sum(high.values())
    return Outcome(value=best, raw=weights.raw, p=p)
