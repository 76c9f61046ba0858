"""A chat and a label_scorer on a sampling engine: the judge model runs in this process, on the same engine that samples."""

from __future__ import annotations

from collections.abc import Sequence

from inward.engines.engine import Completion, Decoding, Engine, Likelihood, Request
from inward.judging.pairwise.comparer import LabelLogps, Reply
from inward.judging.spending import Spending, total

TAIL = 200
"""Characters of a cut answer that its error shows."""


class EngineChat:
    """A `Chat` on any `Engine`. Only the likeliest token is a candidate (top-k 1), so decoding is greedy.

    A conversation that leaves no room for `max_tokens` in the engine's context is not asked, and an answer that was cut
    off or is empty is not used: each is an error that says so.
    """

    def __init__(self, *, engine: Engine, name: str) -> None:
        self.engine, self.name = engine, name
        self._spending = Spending()

    def costs(self) -> Spending:
        """Return the tokens read and written by all calls so far; what a model here costs in money nobody has said."""
        return self._spending

    def complete(self, conversations: Sequence[Sequence[dict[str, str]]], *, max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order. Raises `UsageError` where the chat template refuses the turns."""
        encoded = [self.engine.encode(conversation) for conversation in conversations]
        room = self.engine.context - max_tokens
        requests = [Request(id=str(at), tokens=tokens, k=1) for at, tokens in enumerate(encoded) if len(tokens) <= room]
        greedy = Decoding(temperature=1.0, top_p=1.0, top_k=1, max_new_tokens=max_tokens)
        drawn = self.engine.generate(requests, greedy, seed=0) if requests else []
        completions = {completion.request_id: completion for completion in drawn}
        asked = Spending(
            answers=len(drawn),
            prompt_tokens=sum(len(request.tokens) for request in requests),
            completion_tokens=sum(len(completion.tokens) for completion in drawn),
        )
        self._spending = total([self._spending, asked])
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


class EngineLabelScorer:
    """A `LabelScorer` on an engine that can say how likely a continuation is: one look at what would follow `[[`.

    The labels' probabilities are those of all their tokens. Where one label's tokens are the beginning of another's, or are
    cut otherwise once the verdict is closed, the closing brackets count as well.
    """

    bare = False

    def __init__(self, *, engine: Likelihood, name: str) -> None:
        self.engine, self.name = engine, name
        self._spending = Spending()

    def costs(self) -> Spending:
        """Return the tokens read by all calls so far: conversations with the opening of a verdict. Nothing is written."""
        return self._spending

    def score_labels(self, conversations: Sequence[Sequence[dict[str, str]]], labels: Sequence[str]) -> list[LabelLogps]:
        """Return one weighing a conversation, in order. Raises `UsageError` where the chat template refuses the turns."""
        opening, tails = _verdict_tokens(self.engine, labels)
        stems = [self.engine.encode(conversation) + opening for conversation in conversations]
        room = self.engine.context - max(map(len, tails))
        fitting = [stem for stem in stems if len(stem) <= room]
        found = iter(self.engine.logps(fitting, tails) if fitting else [])
        self._spending = total([self._spending, Spending(answers=len(fitting), prompt_tokens=sum(map(len, fitting)))])
        weighed = []
        for stem in stems:
            if len(stem) > room:
                error = f"{len(stem)} tokens exceed the judge's context of {self.engine.context}"
                weighed.append(LabelLogps(low=None, high=None, error=error))
            else:
                logps = tuple(next(found))
                weighed.append(LabelLogps(low=logps, high=logps))
        return weighed


def _verdict_tokens(engine: Likelihood, labels: Sequence[str]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the tokens that all verdicts begin with, and those in which each goes on."""
    tails = [engine.tokens(f"[[{label}") for label in labels]
    closed = [engine.tokens(f"[[{label}]]") for label in labels]
    begins = any(a is not b and b[: len(a)] == a for a in tails for b in tails)
    if begins or any(whole[: len(tail)] != tail for whole, tail in zip(closed, tails, strict=True)):
        tails = closed
    shared = next(at for at, column in enumerate(zip(*tails, strict=False)) if len(set(column)) > 1)
    return tails[0][:shared], [tail[shared:] for tail in tails]
