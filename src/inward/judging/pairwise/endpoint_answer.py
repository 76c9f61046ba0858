"""What an OpenAI-compatible server's answer holds: a text, a count of tokens, a complaint, a time to wait."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

MESSAGE = 500
"""Characters of a server's message that are kept."""
MOST_TOKENS = 10**9
"""A larger count is no count."""


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, given as a number or as a date; None if as neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def text_of(content: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the first choice's text, or why there is none."""
    choices = content.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if isinstance(text, str):
        return text.encode("utf-8", "replace").decode(), None  # a lone surrogate could be stored nowhere
    return None, cut(f"the answer holds no text: {json.dumps(first)}")


def top_of(content: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the likeliest first tokens of the first choice with the logarithms of their probabilities; none if not given.

    A list with anything in it that is no such pair is no list of them.
    """
    found: Any = content
    for step in ("choices", 0, "logprobs", "content", 0, "top_logprobs"):
        if isinstance(step, int):
            found = found[0] if isinstance(found, list) and found else None
        else:
            found = found.get(step) if isinstance(found, dict) else None
    pairs = [_pair(one) for one in found] if isinstance(found, list) else []
    return [pair for pair in pairs if pair is not None] if all(pairs) else []


def _pair(found: Any) -> tuple[str, float] | None:
    if not isinstance(found, dict):
        return None
    token, logp = found.get("token"), found.get("logprob")
    if not isinstance(token, str) or isinstance(logp, bool) or not isinstance(logp, int | float):
        return None
    if not -MOST_TOKENS <= logp <= 1e-3:
        return None
    return token, min(0.0, float(logp))  # servers round a probability of one to a little more


def usage_of(content: dict[str, Any]) -> tuple[int, int] | None:
    """Return the tokens read and written, or None where they were not counted."""
    usage = content.get("usage")
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(read) is int and type(written) is int and 0 <= read <= MOST_TOKENS and 0 <= written <= MOST_TOKENS:
        return read, written
    return None


def complaint_of(content: Any, text: str) -> str:
    """Return what the server says is wrong: OpenAI's form, those of other servers, or the body as it came."""
    found = content
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    return cut(found if isinstance(found, str) else text or "no reason given")


def cut(text: str) -> str:
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= MESSAGE else text[:MESSAGE] + " ..."
