"""The seam between a stage and whatever runs a language model: tokens in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from inward.errors import UsageError
from inward.records import Finish

CLOSED = "the engine is closed: load a model into it, or make another one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Draw `k` completions of `tokens`, numbered by `indices`, from 0 unless given.

    The random numbers of a completion belong to its index: drawn alone it is the one that it is among others.
    """

    id: str
    tokens: tuple[int, ...]
    k: int
    indices: tuple[int, ...] | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """The index of each completion."""
        return tuple(range(self.k)) if self.indices is None else self.indices


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What an engine can do beyond drawing completions.

    `logps`: it gives raw log-probabilities, as `Decoding.logps` asks. `scaffolds`: it can write text of its own into a
    completion. `reload`: `Engine.load` works; an engine without it is closed and another one is made.
    """

    logps: bool
    scaffolds: bool
    reload: bool


class Engine(Protocol):
    """Anything that can draw completions. The same weights, seed and requests give the same completions.

    `context` is the longest prompt + completion in tokens.
    """

    @property
    def context(self) -> int: ...

    @property
    def abilities(self) -> Abilities: ...

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Apply the chat template, with the generation prompt, exactly once (no second beginning-of-text token).

        Contents are text: a special token that one spells out does not become that token.
        """
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

        Raises UsageError for what `abilities` does not hold, and where the engine is closed.
        """
        ...

    def load(self, folder: Path, base: Path | None = None) -> None:
        """Take the model of another folder, or an adapter there on `base`, in place of the one that is held.

        Afterwards the engine is as a fresh one of that folder: its weights, tokenizer, context and end tokens. A closed engine
        is open again. Raises UsageError where the folder cannot be loaded, with the earlier model still held, and where
        `abilities.reload` is False.
        """
        ...

    def close(self) -> None:
        """Give back the memory of the model. `generate` then raises UsageError until `load`. Closing twice does nothing."""
        ...


@runtime_checkable
class Likelihood(Protocol):
    """An engine that can also say how likely a given continuation is, without drawing any."""

    @property
    def context(self) -> int: ...

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """As `Engine.encode`."""
        ...

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that stands inside a turn, none of them special."""
        ...

    def logps(self, stems: Sequence[tuple[int, ...]], tails: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Return log P(tail | stem), natural, for each stem and each tail, in order. None of them is empty."""
        ...


def require_abilities(engine: Engine, *, logps: bool, scaffold: bool) -> None:
    """Raise UsageError where a recipe asks for what its engine cannot do, before anything is drawn."""
    if logps and not engine.abilities.logps:
        raise UsageError(
            "training.reference = 'sampler' needs an engine that gives the raw log-probabilities of what it draws, and this "
            "one does not: leave training.reference out, and the reference is computed before training"
        )
    if scaffold and not engine.abilities.scaffolds:
        raise UsageError(
            "thought.scaffold needs an engine that can write the markers into an output, and this one cannot: leave "
            "thought.scaffold out, or choose another sampling.engine"
        )
