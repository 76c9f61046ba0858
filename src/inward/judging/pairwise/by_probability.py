"""Verdicts by the probability of the verdict's tokens: no text is written, one look at the model's next token decides.

The model is asked for its verdict at once. The probabilities of the offered labels are normalised over these labels; those
that name the same winner (Arena-Hard's strengths) are added. The likeliest winner has the battle; a tie has it only where the
form offers one. A judge that reasons first may judge better; this one costs a small part of it, never answers unreadably, and
its `p` says how sure it is.

A judge may like a position more than any answer. With `both_orders` each battle is asked the other way round as well, and the
logarithms of each label and of its mirror there (`A>B` and `B>A`) are averaged: whatever pulls towards a position, for this
very pair, cancels. The battle the other way round is then known too and costs nothing more.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inward.config import VerdictForm
from inward.judging.pairwise.by_text import Wording, conversation, wording_id
from inward.judging.pairwise.comparer import Battle, LabelLogps, LabelScorer, Outcome, Stopped
from inward.judging.pairwise.verdicts import LABELS
from inward.judging.spending import Spending
from inward.thought import Turn

_SWAP = str.maketrans("AB", "BA")
_Texts = tuple[str, str, str]
"""What a battle is asked by: its question and both answers, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityComparer:
    """A `Comparer` that asks a label scorer how likely each verdict of the form is. `special_tokens` as in `LLMComparer`."""

    label_scorer: LabelScorer
    form: VerdictForm = "ab"
    turn: Turn = "system"
    both_orders: bool = False
    special_tokens: frozenset[str] = frozenset()
    _scored: dict[_Texts, LabelLogps] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

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
        asked = {_texts(battle): battle for battle in battles}
        if self.both_orders:
            asked |= {_texts(turned): turned for turned in map(_turned, battles)}
        label_logps = self._already_scored(asked)
        todo = {texts: battle for texts, battle in asked.items() if texts not in label_logps}
        try:
            scored = dict(zip(todo, self._score(list(todo.values())), strict=True))
        except Stopped as stop:
            scored = {texts: stop.answered[index] for index, texts in enumerate(todo) if index in stop.answered}
            self._remember(scored)
            raise Stopped(str(stop), self._outcomes(battles, label_logps | scored)) from stop
        self._remember(scored)
        outcomes = self._outcomes(battles, label_logps | scored)
        return [outcomes[index] for index in range(len(battles))]

    def _already_scored(self, asked: Mapping[_Texts, Battle]) -> dict[_Texts, LabelLogps]:
        with self._lock:
            return {texts: self._scored[texts] for texts in asked if texts in self._scored}

    def _remember(self, scored: Mapping[_Texts, LabelLogps]) -> None:
        """Keep what the battles the other way round will need, except errors, which are asked again."""
        if self.both_orders:
            with self._lock:
                self._scored.update({texts: logps for texts, logps in scored.items() if logps.error is None})

    def _outcomes(self, battles: Sequence[Battle], label_logps: Mapping[_Texts, LabelLogps]) -> dict[int, Outcome]:
        """Return the outcome of each battle of which all is known, by its index."""
        outcomes = {}
        for index, battle in enumerate(battles):
            own, turned = label_logps.get(_texts(battle)), label_logps.get(_texts(_turned(battle)))
            if own is not None and not self.both_orders:
                outcomes[index] = decide(own, self.form)
            elif own is not None and turned is not None:
                outcomes[index] = decide(averaged(own, turned, self.form), self.form)
        return outcomes

    def _score(self, battles: Sequence[Battle]) -> list[LabelLogps]:
        if not battles:
            return []
        conversations = [
            conversation(battle, self.form, self.turn, self._wording, special_tokens=self.special_tokens) for battle in battles
        ]
        scored = self.label_scorer.score_labels(conversations, tuple(LABELS[self.form]))
        assert len(scored) == len(battles), f"{self.label_scorer.name} scored {len(scored)} of {len(battles)} conversations"
        return scored


def averaged(own: LabelLogps, turned: LabelLogps, form: VerdictForm) -> LabelLogps:
    """Return the mean of a battle's values and those of the mirrored labels in the battle the other way round."""
    if own.low is None or own.high is None:
        return own
    if turned.low is None or turned.high is None:
        return LabelLogps(low=None, high=None, error=f"in the other order: {turned.error}", raw=own.raw)
    labels = list(LABELS[form])
    swapped = [label.translate(_SWAP) for label in labels]
    mirror = [labels.index(label) if label in labels else index for index, label in enumerate(swapped)]  # a tie is its own
    low = tuple((own.low[index] + turned.low[other]) / 2 for index, other in enumerate(mirror))
    high = tuple((own.high[index] + turned.high[other]) / 2 for index, other in enumerate(mirror))
    return LabelLogps(low=low, high=high, raw=own.raw)


def _texts(battle: Battle) -> _Texts:
    return battle.prompt.text, battle.first, battle.second


def _turned(battle: Battle) -> Battle:
    return Battle(prompt=battle.prompt, first=battle.second, second=battle.first)


def decide(weights: LabelLogps, form: VerdictForm) -> Outcome:
    """Return the outcome that is likelier than every other, whatever the labels' values within their bounds are.

    For a label without a known value, `p` is computed with the highest it can have, which brings `p` nearer to one half.
    """
    if weights.low is None or weights.high is None:
        assert weights.error, "labels have either values or an error"
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
