"""Verdicts by the probability of the verdict's tokens: no text is written, one look at the model's next token decides.

The model is asked for its verdict at once. The probabilities of the offered labels are normalised over these labels; those
that name the same winner (Arena-Hard's strengths) are added. The likeliest winner has the battle, a tie only where the form
offers one. A judge that reasons first may judge better; this one costs a small part of it, never answers unreadably, and its
`p` says how sure it is.

A judge may like a place more than any answer. With `both_orders` each battle is asked the other way round as well, and the
logarithms of each label and of its mirror there (`A>B` and `B>A`) are averaged: whatever pulls towards a place, for this very
pair, cancels, and the battle the other way round, now known, costs nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from inward.config import VerdictForm
from inward.judging.compare import Battle, Outcome, Weigher, Weights
from inward.judging.pairwise import Wording, conversation, wording_id
from inward.judging.verdicts import LABELS
from inward.thought import Turn

_SWAP = str.maketrans("AB", "BA")
_Asked = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityComparer:
    """A `Comparer` that asks a weigher how likely each verdict of the form is."""

    weigher: Weigher
    form: VerdictForm = "ab"
    turn: Turn = "system"
    both_orders: bool = False
    _known: dict[_Asked, Weights] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        how = f"probability{' in both orders' if self.both_orders else ''}"
        return f"pairwise:{self.form}:{self.turn}:{how}:{wording_id(self.form, self._wording)}:{self.weigher.name}"

    @property
    def _wording(self) -> Wording:
        return "bare" if self.weigher.bare else "at once"

    def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
        """Return one outcome a battle, in order. Labels that cannot be told apart are an error, never a tie."""
        if not self.both_orders:
            return [decide(weights, self.form) for weights in self._weigh(battles)]
        turned = [Battle(prompt=one.prompt, first=one.second, second=one.first) for one in battles]
        needed = {_asked(battle): battle for battle in (*battles, *turned)}
        new = {key: battle for key, battle in needed.items() if key not in self._known}
        found = dict(zip(new, self._weigh(list(new.values())), strict=True))
        self._known.update({key: weights for key, weights in found.items() if weights.error is None})  # errors: asked again
        known = self._known | found
        return [
            decide(averaged(known[_asked(one)], known[_asked(other)], self.form), self.form)
            for one, other in zip(battles, turned, strict=True)
        ]

    def _weigh(self, battles: Sequence[Battle]) -> list[Weights]:
        if not battles:
            return []
        conversations = [conversation(battle, self.form, self.turn, self._wording) for battle in battles]
        weighed = self.weigher.weigh(conversations, tuple(LABELS[self.form]))
        assert len(weighed) == len(battles), f"{self.weigher.name} weighed {len(weighed)} of {len(battles)} conversations"
        return weighed


def averaged(own: Weights, turned: Weights, form: VerdictForm) -> Weights:
    """Return the mean of a battle's weights and those of the mirrored labels in the battle the other way round."""
    if own.low is None or own.high is None:
        return own
    if turned.low is None or turned.high is None:
        return Weights(low=None, high=None, error=f"in the other order: {turned.error}", raw=own.raw)
    labels = list(LABELS[form])
    swapped = [label.translate(_SWAP) for label in labels]
    mirror = [labels.index(other) if other in labels else at for at, other in enumerate(swapped)]  # a tie is its own
    low = tuple((own.low[at] + turned.low[other]) / 2 for at, other in enumerate(mirror))
    high = tuple((own.high[at] + turned.high[other]) / 2 for at, other in enumerate(mirror))
    return Weights(low=low, high=high, raw=own.raw)


def _asked(battle: Battle) -> _Asked:
    return battle.prompt.text, battle.first, battle.second


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
