"""A chat, a comparer and a label scorer that follow a function: for tests, dry runs, and anyone who tries a tournament out.

Each keeps its seam's contract. What it returns depends on the texts alone, and so does which of them fail: neither order nor
company nor threads can change it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from inward.judging.pairwise.comparer import Battle, LabelLogps, Outcome, Reply
from inward.judging.spending import Spending, Tally
from inward.records import content_id

_SIDES = {"A": 0.5, "A>B": 0.5, "A>>B": 0.7, "B": -0.5, "B>A": -0.5, "B>>A": -0.7}
"""The part of the log-odds that each label gets; a tie gets none."""


def answers_in(conversation: Sequence[dict[str, str]]) -> tuple[str, str]:
    """Return the two answers that a judge reads in a conversation (`by_text.conversation`)."""
    text = conversation[-1]["content"]
    return _section(text, "answer A"), _section(text, "answer B")


def prefer_longer(first: str, second: str) -> str:
    """Return the reply of a judge that likes length, and the second of two that are equally long."""
    return f"The longer one.\n[[{'A' if len(first) > len(second) else 'B'}]]"


def _longer_wins(battle: Battle) -> float:
    lead = len(battle.first) - len(battle.second)
    return float((lead > 0) - (lead < 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedChat:
    """A `Chat` whose reply is `script(first answer, second answer)`.

    A share `failure_rate` of the replies fails instead, in the ways that judges fail in: no reply, an empty one, one without a
    verdict, one that contradicts itself, one that was cut off, one whose verdict stands in its reasoning.
    """

    script: Callable[[str, str], str] = prefer_longer
    failure_rate: float = 0.0
    seed: int = 0
    name: str = "scripted chat"
    _tally: Tally = field(default_factory=Tally, repr=False, compare=False)

    def costs(self) -> Spending:
        return self._tally.read()

    def complete(self, conversations: Sequence[Sequence[dict[str, str]]], *, max_tokens: int) -> list[Reply]:
        self._tally.add(Spending(answers=len(conversations)))
        return [self._reply(*answers_in(conversation), max_tokens) for conversation in conversations]

    def _reply(self, first: str, second: str, max_tokens: int) -> Reply:
        chance = _chance(self.seed, first, second)
        if chance >= self.failure_rate:
            return Reply(text=self.script(first, second), finish="stop", completion_tokens=min(5, max_tokens - 1))
        failures = (
            Reply(text=None, error="HTTP 500"),
            Reply(text="", finish="stop"),
            Reply(text="I cannot say.", finish="stop"),
            Reply(text="[[A]] or [[B]]", finish="stop"),
            Reply(text="[[A]] so far", finish="length", completion_tokens=max_tokens),
            Reply(text="<think>Perhaps [[A]]", finish="stop"),
        )
        return failures[int(chance / self.failure_rate * len(failures))]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedComparer:
    """A `Comparer` whose outcome is `decide(battle)`: 1 where the first wins, -1 the second, 0 a tie, None no verdict.

    A share `failure_rate` of the battles has no verdict instead.
    """

    decide: Callable[[Battle], float | None] = _longer_wins
    failure_rate: float = 0.0
    seed: int = 0
    name: str = "scripted comparer"
    _tally: Tally = field(default_factory=Tally, repr=False, compare=False)

    def costs(self) -> Spending:
        return self._tally.read()

    def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
        self._tally.add(Spending(answers=len(battles)))
        return [self._outcome(battle) for battle in battles]

    def _outcome(self, battle: Battle) -> Outcome:
        fails = _chance(self.seed, battle.prompt.text, battle.first, battle.second) < self.failure_rate
        value = None if fails else self.decide(battle)
        if value is None:
            return Outcome(value=None, error="no verdict", raw="I cannot say.")
        return Outcome(value=value, raw="as the script says")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedLabelScorer:
    """A `LabelScorer` for which `log_odds(first answer, second answer)` are those of A over B; a tie stands between them.

    A share `failure_rate` of the conversations gets an error instead.
    """

    log_odds: Callable[[str, str], float] = lambda first, second: float(len(first) - len(second))
    failure_rate: float = 0.0
    seed: int = 0
    bare: bool = False
    name: str = "scripted label scorer"
    _tally: Tally = field(default_factory=Tally, repr=False, compare=False)

    def costs(self) -> Spending:
        return self._tally.read()

    def score_labels(self, conversations: Sequence[Sequence[dict[str, str]]], labels: Sequence[str]) -> list[LabelLogps]:
        self._tally.add(Spending(answers=len(conversations)))
        return [self._label_logps(*answers_in(conversation), labels) for conversation in conversations]

    def _label_logps(self, first: str, second: str, labels: Sequence[str]) -> LabelLogps:
        if _chance(self.seed, first, second) < self.failure_rate:
            return LabelLogps(low=None, high=None, error="HTTP 500")
        log_odds = self.log_odds(first, second)
        logps = tuple(_SIDES.get(label, 0.0) * log_odds - 40.0 for label in labels)
        return LabelLogps(low=logps, high=logps)


def _section(text: str, name: str) -> str:
    _, _, rest = text.partition(f"--- {name} begins (")
    return rest.partition("\n")[2].partition(f"\n--- {name} ends (")[0]


def _chance(seed: int, *texts: str) -> float:
    """Return a number from 0 to 1 that depends on the seed and the texts alone."""
    return int(content_id(str(seed), *texts), 16) / 2**64
