"""The seam between a stage and whatever runs a language model: tokens in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from inward.records import Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Draw `k` completions of `tokens`."""

    id: str
    tokens: tuple[int, ...]
    k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How to draw. `top_k` bounds the candidates that top-p chooses from. Lengths are in tokens.

    `logps` asks for each token's log-probability, raw: without temperature, top-k and top-p (`Completion.logps`).
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 256
    max_new_tokens: int = 1024
    logps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffold:
    """Text the engine writes itself: `opening` first, then, at the latest after `budget` tokens of thought, `closing`.

    Where the model writes the `marker` by itself, `closing` is not written. An end of turn inside the thought is replaced
    by `closing`.
    """

    opening: str
    closing: str
    marker: str
    budget: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One drawn completion; `written` marks the tokens that the engine wrote. `text` is without special tokens.

    `logps` (nats, one a token, those that the engine wrote included) are there only where `Decoding.logps` asked for them.
    """

    request_id: str
    index: int
    tokens: tuple[int, ...]
    written: tuple[bool, ...]
    text: str
    finish: Finish
    logps: tuple[float, ...] | None = None


Progress = Callable[[int, int], None]
"""Called with (finished completions, tokens drawn) since the last call."""


class Engine(Protocol):
    """Anything that can draw completions. The same seed and requests give the same completions.

    `context` is the longest prompt + completion in tokens. `gives_logps` says whether it can give raw log-probabilities, as
    `Decoding.logps` asks.
    """

    @property
    def context(self) -> int: ...

    @property
    def gives_logps(self) -> bool: ...

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Apply the chat template, with the generation prompt, exactly once (no second beginning-of-text token)."""
        ...

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        *,
        seed: int,
        scaffold: Scaffold | None = None,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """Return every request's `k` completions, ordered by request and index.

        Raises UsageError for `decoding.logps` where the engine does not give them.
        """
        ...


class Likelihood(Protocol):
    """An engine that can also say how likely a given continuation is, without drawing any."""

    @property
    def context(self) -> int: ...

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """As `Engine.encode`."""
        ...

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that stands inside a turn."""
        ...

    def logps(self, stems: Sequence[tuple[int, ...]], tails: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Return log P(tail | stem), natural, for each stem and each tail, in order. None of them is empty."""
        ...
