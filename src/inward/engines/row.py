"""One completion while it is drawn: what the engine writes, where the thought ends, when to stop. No model in here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inward.engines.engine import Completion, Decoding, Request, Scaffold
from inward.errors import UsageError
from inward.records import Finish

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]


class MarkerWatch:
    """Tells when a marker has just been completed in decoded text, however it was cut into tokens.

    Decoding is the costly part, so it is done only after a token that can hold the marker's last character.
    """

    def __init__(self, marker: str, decode: Decode) -> None:
        self._marker = marker
        self._decode = decode
        self._may_end: dict[int, bool] = {}

    def completed(self, tokens: Sequence[int]) -> bool:
        last = tokens[-1]
        if last not in self._may_end:
            piece = self._decode([last])
            self._may_end[last] = self._marker[-1] in piece or "\N{REPLACEMENT CHARACTER}" in piece
        return self._may_end[last] and self._marker in self._decode(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is the same for every row of a call: the end tokens, the limits and the scaffold in tokens."""

    stops: frozenset[int]
    max_new_tokens: int
    decode: Decode
    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    budget: int = 0
    watch: MarkerWatch | None = None


def make_rules(
    decoding: Decoding, scaffold: Scaffold | None, *, stops: frozenset[int], encode: Encode, decode: Decode
) -> Rules:
    """Tokenise the scaffold. Raises `UsageError` where the scaffold leaves no token for the response."""
    if scaffold is None:
        return Rules(stops=stops, max_new_tokens=decoding.max_new_tokens, decode=decode)
    opening, closing = tuple(encode(scaffold.opening)), tuple(encode(scaffold.closing))
    if not closing or not scaffold.marker:
        raise UsageError("a scaffold needs a marker and a closing text that holds it; the direct format has none")
    needed = len(opening) + scaffold.budget + len(closing)
    if needed >= decoding.max_new_tokens:
        raise UsageError(
            f"thought.scaffold.budget = {scaffold.budget} with {len(opening) + len(closing)} marker tokens leaves no "
            f"room for a response in sampling.max_new_tokens = {decoding.max_new_tokens}: "
            f"set that above {needed} or lower the budget"
        )
    return Rules(
        stops=stops,
        max_new_tokens=decoding.max_new_tokens,
        decode=decode,
        opening=opening,
        closing=closing,
        budget=scaffold.budget,
        watch=MarkerWatch(scaffold.marker, decode),
    )


def check_lengths(requests: Sequence[Request], rules: Rules, context: int) -> None:
    """Raise `UsageError` for a request that is malformed or does not fit into the context with its completion."""
    seen: set[str] = set()
    for request in requests:
        if request.id in seen:
            raise UsageError(f"prompt {request.id} is asked for twice in one call; every prompt needs an id of its own")
        seen.add(request.id)
        if not request.tokens or request.k < 1:
            raise UsageError(f"prompt {request.id} needs at least one token and one sample")
        if len(request.tokens) + rules.max_new_tokens > context:
            raise UsageError(
                f"prompt {request.id} has {len(request.tokens)} tokens; with sampling.max_new_tokens = "
                f"{rules.max_new_tokens} it exceeds the model's context of {context}. "
                "Lower sampling.max_new_tokens or prompts.max_tokens"
            )


class Row:
    """A completion in the making. `take` what was sampled; the row keeps it, or writes what the scaffold demands."""

    def __init__(self, request_id: str, index: int, rules: Rules) -> None:
        self.request_id = request_id
        self.index = index
        self.tokens = list(rules.opening)
        self.written = [True] * len(rules.opening)
        self.logps: list[float] = []  # of the tokens after the opening, where they are asked for
        self.finish: Finish | None = None
        self._rules = rules
        self._queue: deque[int] = deque()
        self._thinking = rules.watch is not None

    @property
    def forced(self) -> bool:
        """True where the next token is the engine's, whatever is sampled."""
        return bool(self._queue)

    @property
    def room(self) -> int:
        """How many tokens may be drawn before the engine writes or the row ends, whatever is drawn: one or more."""
        left = self._rules.max_new_tokens - len(self.tokens)
        if not self._thinking:
            return left
        return min(left, max(1, self._rules.budget - len(self.tokens) + len(self._rules.opening)))

    def take(self, sampled: int) -> None:
        """Advance by one token. `sampled` is ignored while the engine writes."""
        if self._thinking and sampled in self._rules.stops:
            self._close()
        written = self.forced
        token = self._queue.popleft() if written else sampled
        self.tokens.append(token)
        self.written.append(written)
        if not written and token in self._rules.stops:
            self.finish = "stop"
        elif len(self.tokens) >= self._rules.max_new_tokens:
            self.finish = "length"
        elif self._thinking:
            self._watch_thought()

    def completion(self, opening: tuple[float, ...] | None = None) -> Completion:
        """Return it finished; with `opening`, the log-probabilities of the opening's tokens, also with those of all others."""
        assert self.finish is not None
        return Completion(
            request_id=self.request_id,
            index=self.index,
            tokens=tuple(self.tokens),
            written=tuple(self.written),
            text=self._rules.decode(self.tokens),
            finish=self.finish,
            logps=None if opening is None else (*opening, *self.logps),
        )

    def _watch_thought(self) -> None:
        assert self._rules.watch is not None
        thought = self.tokens[len(self._rules.opening) :]
        if self._rules.watch.completed(thought):
            self._thinking = False
        elif len(thought) >= self._rules.budget:
            self._close()

    def _close(self) -> None:
        self._thinking = False
        self._queue.extend(self._rules.closing)
