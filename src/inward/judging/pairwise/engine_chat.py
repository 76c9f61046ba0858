"""A chat and a label scorer on a sampling engine: the judge model runs in this process, on the same engine that samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inward.engines.engine import Completion, Decoding, Engine, Likelihood, Request
from inward.judging.pairwise.comparer import LabelLogps, Reply
from inward.judging.pairwise.replies import marks_reasoning, open_reasoning
from inward.judging.spending import Spending, Tally

TURN_OPENING_TOKENS = 32
"""As many tokens at the end of a prompt hold all that a chat template writes to open the model's turn."""
Decode = Callable[[Sequence[int]], str]


class EngineChat:
    """A `Chat` on any `Engine`. Only the likeliest token is a candidate (top-k 1), so decoding is greedy.

    A conversation that leaves no room for `max_tokens` in the engine's context is not asked: its reply is an error that says
    so. `decode` gives the text of tokens with special ones spelled out: models that mark their reasoning by special tokens
    need it, because a `Completion.text` has none.
    """

    def __init__(self, *, engine: Engine, name: str, decode: Decode | None = None) -> None:
        self.engine, self.name = engine, name
        self._decode = decode
        self._tally = Tally()

    def costs(self) -> Spending:
        """Return the tokens read and written by all calls so far. What they cost in money is not known here."""
        return self._tally.read()

    def complete(self, conversations: Sequence[Sequence[dict[str, str]]], *, max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order. Raises `UsageError` where the chat template refuses the turns."""
        encoded = [self.engine.encode(conversation) for conversation in conversations]
        room = self.engine.context - max_tokens
        requests = [Request(id=str(index), tokens=tokens, k=1) for index, tokens in enumerate(encoded) if len(tokens) <= room]
        greedy = Decoding(temperature=1.0, top_p=1.0, top_k=1, max_new_tokens=max_tokens)
        drawn = self.engine.generate(requests, greedy, seed=0) if requests else []
        completions = {completion.request_id: completion for completion in drawn}
        spent = Spending(
            answers=len(drawn),
            prompt_tokens=sum(len(request.tokens) for request in requests),
            completion_tokens=sum(len(completion.tokens) for completion in drawn),
        )
        self._tally.add(spent)
        return [
            self._reply(completions[str(index)], tokens) if len(tokens) <= room else _too_long(len(tokens), max_tokens, room)
            for index, tokens in enumerate(encoded)
        ]

    def _reply(self, completion: Completion, prompt: Sequence[int]) -> Reply:
        return Reply(
            text=completion.text if self._decode is None else _with_reasoning(completion, prompt, self._decode),
            finish=completion.finish,
            prompt_tokens=len(prompt),
            completion_tokens=len(completion.tokens),
        )


def _with_reasoning(completion: Completion, prompt: Sequence[int], decode: Decode) -> str:
    """Return a completion's text with the marks of its reasoning, also one that the chat template wrote to open the turn."""
    spelled_out = decode(completion.tokens)
    text = spelled_out if marks_reasoning(spelled_out) else completion.text
    return (open_reasoning(decode(prompt[-TURN_OPENING_TOKENS:])) or "") + text


def _too_long(tokens: int, max_tokens: int, room: int) -> Reply:
    context = room + max_tokens
    return Reply(text=None, error=f"{tokens} tokens and {max_tokens} to answer exceed the judge's context of {context}")


class EngineLabelScorer:
    """A `LabelScorer` on an engine that can say how likely a continuation is: one look at what would follow `[[`.

    The labels' probabilities are those of all their tokens. Where one label's tokens are the beginning of another's, or are
    cut otherwise once the verdict is closed, the closing brackets count as well.
    """

    bare = False

    def __init__(self, *, engine: Likelihood, name: str) -> None:
        self.engine, self.name = engine, name
        self._tally = Tally()

    def costs(self) -> Spending:
        """Return the tokens read by all calls so far: conversations with the opening of a verdict. Nothing is written."""
        return self._tally.read()

    def score_labels(self, conversations: Sequence[Sequence[dict[str, str]]], labels: Sequence[str]) -> list[LabelLogps]:
        """Return the labels' values for each conversation, in order. Raises `UsageError` where the template refuses turns."""
        opening, tails = _verdict_tokens(self.engine, labels)
        stems = [self.engine.encode(conversation) + opening for conversation in conversations]
        room = self.engine.context - max(map(len, tails))
        fitting = [stem for stem in stems if len(stem) <= room]
        rows = iter(self.engine.logps(fitting, tails) if fitting else [])
        self._tally.add(Spending(answers=len(fitting), prompt_tokens=sum(map(len, fitting))))
        scored = []
        for stem in stems:
            if len(stem) > room:
                error = f"{len(stem)} tokens exceed the judge's context of {self.engine.context}"
                scored.append(LabelLogps(low=None, high=None, error=error))
            else:
                logps = tuple(next(rows))
                scored.append(LabelLogps(low=logps, high=logps))
        return scored


def _verdict_tokens(engine: Likelihood, labels: Sequence[str]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the tokens that all verdicts begin with, and those in which each goes on."""
    tails = [engine.tokens(f"[[{label}") for label in labels]
    closed = [engine.tokens(f"[[{label}]]") for label in labels]
    begins = any(a is not b and b[: len(a)] == a for a in tails for b in tails)
    if begins or any(tokens[: len(tail)] != tail for tokens, tail in zip(closed, tails, strict=True)):
        tails = closed
    shared = next(index for index, column in enumerate(zip(*tails, strict=False)) if len(set(column)) > 1)
    return tails[0][:shared], [tail[shared:] for tail in tails]
