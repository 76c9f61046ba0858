"""What is asked of a server's `/completions`, and what its answers hold: tokens in, tokens out.

Everything here is a function of its arguments alone, and takes whatever a server may send: `Nonsense` says what is wrong with
it. Every setting of the draw is sent, because a server fills in its own for those that are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inward.engines.endpoint.http_answer import cut
from inward.engines.engine import Decoding

MOST_NATS = 1e4
"""A log-probability below minus this one is none."""


class Nonsense(ValueError):
    """An answer that cannot be one to what was asked; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Tokens that a server drew, with their log-probabilities where they were asked for."""

    tokens: tuple[int, ...]
    logps: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that a server lists: its name, the longest text it takes (tokens, if it says so), whether it is an adapter."""

    name: str
    context: int | None
    adapter: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What is to be drawn: at most `limit` tokens after `tokens`, to the first of `stops`, which counts among them."""

    tokens: tuple[int, ...]
    limit: int
    stops: frozenset[int]
    seed: int


def draw_body(model: str, stretch: Stretch, decoding: Decoding, *, logps: bool) -> dict[str, Any]:
    """Return the request that draws a stretch. The server's own end tokens are ignored, since `stops` holds the model's."""
    body = {
        "model": model,
        "prompt": list(stretch.tokens),
        "max_tokens": stretch.limit,
        "n": 1,
        "seed": stretch.seed,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(stretch.stops),
        "ignore_eos": True,
        "stream": False,
        "return_token_ids": True,
    }
    return body | {"logprobs": 0} if logps else body


def score_body(model: str, tokens: Sequence[int]) -> dict[str, Any]:
    """Return the request for the log-probabilities of given tokens: OpenAI's `echo`, with one token drawn and left aside."""
    body = {"model": model, "prompt": list(tokens), "max_tokens": 1, "n": 1, "temperature": 1.0, "seed": 0, "stream": False}
    return body | {"echo": True, "logprobs": 0, "return_token_ids": True}


def text_body(model: str, text: str) -> dict[str, Any]:
    """Return the request that has a server tokenise a text, with nothing added, and say the tokens."""
    body = {"model": model, "prompt": text, "max_tokens": 1, "n": 1, "temperature": 1.0, "seed": 0, "stream": False}
    return body | {"add_special_tokens": False, "return_token_ids": True}


def read_drawn(content: dict[str, Any], stretch: Stretch, *, vocabulary: int, logps: bool) -> Drawn:
    """Return what was drawn for a stretch. Raises `Nonsense` where the answer is none to it."""
    choice = only_choice(content)
    echoed = choice.get("prompt_token_ids")
    if echoed is not None and echoed != list(stretch.tokens):
        raise Nonsense("it says that it read other prompt tokens than those that were sent")
    tokens = _ids(choice.get("token_ids"), vocabulary)
    finish, ended = choice.get("finish_reason"), bool(tokens) and tokens[-1] in stretch.stops
    if not tokens or len(tokens) > stretch.limit:
        raise Nonsense(f"it drew {len(tokens)} tokens where 1 to {stretch.limit} were asked for")
    if any(token in stretch.stops for token in tokens[:-1]):
        raise Nonsense("it went on drawing after an end token")
    if finish not in ("stop", "length") or (len(tokens) < stretch.limit and not ended):
        raise Nonsense(
            f"it stopped after {len(tokens)} of {stretch.limit} tokens without an end token (finish_reason "
            f"{cut(repr(finish))}): it has limits or end tokens of its own. Start vLLM with --generation-config vllm"
        )
    values = _token_logps(choice)[-len(tokens) :] if logps else None
    if values is not None and (len(values) != len(tokens) or any(value is None for value in values)):
        raise Nonsense(f"it gave {len(values)} log-probabilities for {len(tokens)} tokens")
    return Drawn(tokens=tokens, logps=None if values is None else tuple(value for value in values if value is not None))


def read_scores(content: dict[str, Any], tokens: Sequence[int]) -> tuple[float, ...]:
    """Return the log-probabilities of given tokens after the first. Raises `Nonsense` where the answer does not hold them."""
    values = _token_logps(only_choice(content))[1 : len(tokens)]
    if len(values) != len(tokens) - 1 or any(value is None for value in values):
        raise Nonsense(f"it gave {len(values)} log-probabilities for {len(tokens) - 1} tokens of a prompt (echo with logprobs)")
    return tuple(value for value in values if value is not None)


def read_prompt(content: dict[str, Any]) -> list[int] | None:
    """Return the tokens that a server says to have read as the prompt, or None where it does not say."""
    ids = only_choice(content).get("prompt_token_ids")
    return ids if isinstance(ids, list) and all(type(token) is int for token in ids) else None


def read_models(content: dict[str, Any]) -> list[Served]:
    """Return the models that a server lists. Raises `Nonsense` where the answer is no list of models."""
    entries = content.get("data")
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in entries
    ):
        raise Nonsense(f"its list of models is none: {cut(json.dumps(content))}")
    lengths = [entry.get("max_model_len") for entry in entries]
    contexts = [length if type(length) is int and length > 0 else None for length in lengths]
    return [
        Served(name=entry["id"], context=context, adapter=bool(entry.get("parent")))
        for entry, context in zip(entries, contexts, strict=True)
    ]


def only_choice(content: dict[str, Any]) -> dict[str, Any]:
    """Return the one choice of an answer. Raises `Nonsense` where there is not exactly one."""
    choices = content.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        count = len(choices) if isinstance(choices, list) else "no"
        raise Nonsense(f"its answer holds {count} choices instead of one: {cut(json.dumps(content))}")
    return choices[0]


def _ids(value: Any, vocabulary: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise Nonsense("its answer holds no token ids (token_ids)")
    if outside := [token for token in value if not 0 <= token < vocabulary]:
        raise Nonsense(f"it drew token {outside[0]}, which a vocabulary of {vocabulary} does not have")
    return tuple(value)


def _token_logps(choice: dict[str, Any]) -> list[float | None]:
    """Return the log-probability of each token that a choice holds, None for the first of a prompt."""
    logprobs = choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(values, list):
        raise Nonsense("its answer holds no log-probabilities (logprobs.token_logprobs)")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (number and -MOST_NATS <= value <= 1e-3):
            raise Nonsense(f"its answer holds {cut(repr(value))} as a log-probability")
    return [None if value is None else min(0.0, float(value)) for value in values]  # rounding makes one a little more
