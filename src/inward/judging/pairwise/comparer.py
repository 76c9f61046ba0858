"""The seams of pairwise judging: a comparer decides battles, a chat answers conversations.

A tournament asks a comparer. A comparer asks a chat for its answer in words, or a label scorer for how likely each answer is.
Chat and label scorer are each an engine in this process or an endpoint elsewhere. All of them take strings only, so no thought
of a sampled output can reach them. Several threads may use one object at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from inward.errors import JudgeError
from inward.judging.spending import Spending
from inward.records import Prompt

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Battle:
    """Two responses to one prompt, in the order in which the judge reads them."""

    prompt: Prompt
    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Who won a battle: 1 the first, -1 the second, 0 a tie; strong verdicts count no more than plain ones.

    `value` is None if and only if `error` says why there is no verdict. `raw` is the judge's text as it came. `p` is how
    probable a judge that says so finds it that the first is better, a tie counting half.
    """

    value: float | None
    error: str | None = None
    raw: str = ""
    p: float | None = None


class Stopped(JudgeError, Generic[T]):
    """A chat or a comparer cannot go on. `answered` holds what this call had answered by then, by its index in the call."""

    def __init__(self, message: str, answered: dict[int, T]) -> None:
        super().__init__(message)
        self.answered = answered

    def __reduce__(self) -> tuple[type[JudgeError], tuple[str]]:
        return JudgeError, (str(self),)  # to another process goes what a person is told


class Comparer(Protocol):
    """Anything that decides battles. `name` identifies it with its settings."""

    @property
    def name(self) -> str: ...

    def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
        """Return one outcome a battle, in order. Raises `Stopped` (a `JudgeError`) where it cannot go on."""
        ...

    def costs(self) -> Spending:
        """Return what all calls so far came to, those that raised included."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A chat's reply. It has a `text`, or an `error` that says why not; a text beside an error is not to be used.

    `finish` says why the text ended, in the server's or the engine's own word ("stop", "length", ...), where it says so. Tokens
    are what the server or engine counted. `top` are the likeliest first tokens and the natural logarithms of their
    probabilities, where they were asked for and the server gave them.
    """

    text: str | None
    error: str | None = None
    finish: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    top: tuple[tuple[str, float], ...] | None = None


class Chat(Protocol):
    """Anything that answers conversations greedily, many at once."""

    @property
    def name(self) -> str: ...

    def complete(self, conversations: Sequence[Sequence[dict[str, str]]], *, max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order. Raises `Stopped` (a `JudgeError`) where it cannot go on."""
        ...

    def costs(self) -> Spending:
        """Return what all calls so far came to, those that raised included."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLogps:
    """How likely each offered label is as the beginning of an answer: natural logarithms, up to a common constant.

    Each label has the interval that its value must lie in, `low` to `high`; where all is known the two are equal. Both are
    None if and only if `error` says why. `raw` is what a server wrote.
    """

    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    error: str | None = None
    raw: str = ""


class LabelScorer(Protocol):
    """Anything that says how likely each of some labels is as a model's answer. `bare`: it is asked for the label alone."""

    @property
    def name(self) -> str: ...

    @property
    def bare(self) -> bool: ...

    def score_labels(self, conversations: Sequence[Sequence[dict[str, str]]], labels: Sequence[str]) -> list[LabelLogps]:
        """Return the labels' values for each conversation, in order. Raises `Stopped` as a chat does."""
        ...

    def costs(self) -> Spending:
        """Return what all calls so far came to, those that raised included."""
        ...
