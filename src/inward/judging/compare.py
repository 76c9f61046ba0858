"""The seams of pairwise judging: a comparer decides battles, a chat answers conversations.

A tournament asks a comparer; an LLM comparer asks a chat; a chat is an engine in this process or an endpoint elsewhere.
Strings only, so no thought can reach any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from inward.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Battle:
    """Two responses to one prompt, in the order in which the judge reads them."""

    prompt: Prompt
    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Who won a battle: 1 the first, -1 the second, 0 a tie; strong verdicts count no more than plain ones.

    `value` is None if and only if `error` says why there is no verdict. `raw` is the judge's text as it came.
    """

    value: float | None
    error: str | None = None
    raw: str = ""


class Comparer(Protocol):
    """Anything that decides battles. `name` identifies it with its settings."""

    @property
    def name(self) -> str: ...

    def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
        """Return one outcome a battle, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A chat's answer. `text` is None if and only if `error` says why. Tokens are what the server or engine counted."""

    text: str | None
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chat(Protocol):
    """Anything that answers conversations greedily, many at once."""

    @property
    def name(self) -> str: ...

    def complete(self, conversations: Sequence[Sequence[dict[str, str]]], *, max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order."""
        ...
