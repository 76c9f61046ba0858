"""A chat on a sampling engine: the judge model runs in this process, on the same engine that samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inward.judging.compare import Reply
from inward.sampling.engine import Completion, Decoding, Engine, Request

TAIL = 200
"""Characters of a cut answer that its error shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChat:
    """A `Chat` on any `Engine`. Only the likeliest token is a candidate (top-k 1), so decoding is greedy.

    A conversation that leaves no room for `max_tokens` in the engine's context is not asked, and an answer that was cut
    off or is empty is not used: each is an error that says so.
    """

    engine: Engine
    name: str

    def complete(self, conversations: Sequence[Sequence[dict[str, str]]], *, max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order. Raises `UsageError` where the chat template refuses the turns."""
        encoded = [self.engine.encode(conversation) for conversation in conversations]
        room = self.engine.context - max_tokens
        requests = [Request(id=str(at), tokens=tokens, k=1) for at, tokens in enumerate(encoded) if len(tokens) <= room]
        greedy = Decoding(temperature=1.0, top_p=1.0, top_k=1, max_new_tokens=max_tokens)
        drawn = self.engine.generate(requests, greedy, seed=0) if requests else []
        completions = {completion.request_id: completion for completion in drawn}
        return [
            _reply(completions[str(at)], len(tokens)) if len(tokens) <= room else _too_long(len(tokens), max_tokens, room)
            for at, tokens in enumerate(encoded)
        ]


def _too_long(tokens: int, max_tokens: int, room: int) -> Reply:
    context = room + max_tokens
    return Reply(text=None, error=f"{tokens} tokens and {max_tokens} to answer exceed the judge's context of {context}")


def _reply(completion: Completion, prompt_tokens: int) -> Reply:
    text, error = _read(completion)
    return Reply(text=text, error=error, prompt_tokens=prompt_tokens, completion_tokens=len(completion.tokens))


def _read(completion: Completion) -> tuple[str | None, str | None]:
    if completion.finish == "length":
        return None, f"the answer was cut off at {len(completion.tokens)} tokens: ...{completion.text[-TAIL:]}"
    if not completion.text.strip():
        return None, "an empty answer"
    return completion.text, None
