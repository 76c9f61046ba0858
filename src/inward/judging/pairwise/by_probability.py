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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inward.config import VerdictForm
from inward.judging.pairwise.by_text import Wording, conversation, wording_id
from inward.judging.pairwise.comparer import Battle, LabelLogps, LabelScorer, Outcome, Stopped
from inward.judging.pairwise.verdicts import LABELS
from inward.judging.spending import Spending
from inward.thought import Turn

_SWAP = str.maketrans("AB", "BA")
_Asked = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityComparer:
    """A `Comparer` that asks a label_scorer how likely each verdict of the form is."""

    label_scorer: LabelScorer
    form: VerdictForm = "ab"
    turn: Turn = "system"
    both_orders: bool = False
    _known: dict[_Asked, LabelLogps] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        how = f"probability{' in both orders' if self.both_orders else ''}"
        return f"pairwise:{self.form}:{self.turn}:{how}:{wording_id(self.form, self._wording)}:{self.label_scorer.name}"

    @property
    def _wording(self) -> Wording:
        return "bare" if self.label_scorer.bare else "at once"

    def costs(self) -> Spending:
        return self.label_scorer.costs()

    def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
        """Return one outcome a battle, in order. Labels that cannot be told apart are an error, never a tie."""
        turned = [Battle(prompt=one.prompt, first=one.second, second=one.first) for one in battles]
        needed = {_asked(battle): battle for battle in ((*battles, *turned) if self.both_orders else battles)}
        known = dict(self._known) if self.both_orders else {}
        new = {key: battle for key, battle in needed.items() if key not in known}
        try:
            known |= self._learnt(dict(zip(new, self._weigh(list(new.values())), strict=True)))
        except Stopped as stop:
            known |= self._learnt({key: stop.answered[at] for at, key in enumerate(new) if at in stop.answered})
            raise Stopped(str(stop), self._outcomes(battles, turned, known)) from stop
        outcomes = self._outcomes(battles, turned, known)
        return [outcomes[at] for at in range(len(battles))]

    def _learnt(self, found: dict[_Asked, LabelLogps]) -> dict[_Asked, LabelLogps]:
        """Note what the battles the other way round will need, but for errors, which are asked again."""
        if self.both_orders:
            self._known.update({key: weights for key, weights in found.items() if weights.error is None})
        return found

    def _outcomes(
        self, battles: Sequence[Battle], turned: Sequence[Battle], known: Mapping[_Asked, LabelLogps]
    ) -> dict[int, Outcome]:
        """Return the outcome of each battle, by its place, of which all is known."""
        if not self.both_orders:
            return {at: decide(known[_asked(one)], self.form) for at, one in enumerate(battles) if _asked(one) in known}
        return {
            at: decide(averaged(known[_asked(one)], known[_asked(other)], self.form), self.form)
            for at, (one, other) in enumerate(zip(battles, turned, strict=True))
            if _asked(one) in known and _asked(other) in known
        }

    def _weigh(self, battles: Sequence[Battle]) -> list[LabelLogps]:
        if not battles:
            return []
        conversations = [conversation(battle, self.form, self.turn, self._wording) for battle in battles]
        weighed = self.label_scorer.score_labels(conversations, tuple(LABELS[self.form]))
        assert len(weighed) == len(battles), f"{self.label_scorer.name} weighed {len(weighed)} of {len(battles)} conversations"
        return weighed


def averaged(own: LabelLogps, turned: LabelLogps, form: VerdictForm) -> LabelLogps:
    """Return the mean of a battle's weights and those of the mirrored labels in the battle the other way round."""
    if own.low is None or own.high is None:
        return own
    if turned.low is None or turned.high is None:
        return LabelLogps(low=None, high=None, error=f"in the other order: {turned.error}", raw=own.raw)
    labels = list(LABELS[form])
    swapped = [label.translate(_SWAP) for label in labels]
    mirror = [labels.index(other) if other in labels else at for at, other in enumerate(swapped)]  # a tie is its own
    low = tuple((own.low[at] + turned.low[other]) / 2 for at, other in enumerate(mirror))
    high = tuple((own.high[at] + turned.high[other]) / 2 for at, other in enumerate(mirror))
    return LabelLogps(low=low, high=high, raw=own.raw)


def _asked(battle: Battle) -> _Asked:
    return battle.prompt.text, battle.first, battle.second


def decide(weights: LabelLogps, form: VerdictForm) -> Outcome:
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
