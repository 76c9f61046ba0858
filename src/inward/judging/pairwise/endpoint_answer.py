"""What an OpenAI-compatible server's answer holds: a reply, a refusal, a trouble that may pass, or the end of all asking.

Everything here is a function of status, headers and body alone, and takes whatever a server may send.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from inward.judging.pairwise.comparer import Reply

MESSAGE_CHARACTERS = 500
"""As much of a server's message is kept."""
MOST_TOKENS = 10**9
"""A larger count is no count."""
MOST_WAIT_S = 366 * 86400.0
"""A server that asks for a longer wait is taken to ask for this one."""
SECRET_CHARACTERS = 8
"""A key of so many characters is a secret and is blanked out; servers without keys are given a word like EMPTY."""
_AGAIN = {408, 425, 429}
_REDIRECTS = {301, 302, 303, 307, 308}
_USELESS = {
    401: "refuses the key: mend the key in the environment variable that endpoint.key_env names, or set endpoint.key_env",
    402: "wants to be paid: see to the account behind the key",
    404: "knows no such model or address: mend endpoint.model or endpoint.base_url",
    405: "does not take requests at this address: mend endpoint.base_url",
    410: "no longer has this model or address: mend endpoint.model or endpoint.base_url",
}
"""Refusals that every other request would meet too, and what mends them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply of the model; `counted` says whether the server counted its tokens."""

    reply: Reply
    counted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The server does not take this request. `forbidden`: it is likely to take no other one either."""

    reason: str
    forbidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A try that may succeed when it is repeated; `wait_s` is the wait in seconds that the server asks for.

    `gone`: no server was reached, which is no fault of this request.
    """

    reason: str
    wait_s: float | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Useless:
    """The server would take no request as it is asked now."""

    reason: str


def read_answer(status: int, headers: Mapping[str, str], text: str, key: str | None) -> Answer | Refusal | Trouble | Useless:
    """Return what an answer comes to. The key is blanked out of whatever the server says."""
    text = blank(text, key)  # before anything is cut short
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    reason = blank(f"HTTP {status}: {complaint_of(content, text)}", key)
    if status in _AGAIN or status >= 500:
        return Trouble(reason=reason, wait_s=retry_after(headers.get("Retry-After")))
    if status in _REDIRECTS:
        return Useless(reason=_redirect(status, blank(headers.get("Location") or "", key)))
    if status in _USELESS:
        return Useless(reason=f"{_USELESS[status]} ({reason})")
    if status != 200:
        return Refusal(reason=reason, forbidden=status == 403)
    if not isinstance(content, dict):
        return Trouble(reason=f"the answer is not a JSON object: {cut(text)}")
    if content.get("error"):  # some gateways report what failed behind them with status 200
        return Trouble(reason=reason)
    return _read(content, key)


def _redirect(status: int, location: str) -> str:
    target = cut(location.removesuffix("/chat/completions"))
    if not target:
        return f"redirects elsewhere without an address (HTTP {status}): set endpoint.base_url to where the server is"
    return f"redirects to {target} (HTTP {status}), which is not followed: set endpoint.base_url to that address"


def _read(content: dict[str, Any], key: str | None) -> Answer:
    usage = usage_of(content)
    read, written = usage or (0, 0)
    top = tuple((blank(token, key), logp) for token, logp in top_of(content)) or None
    reply = replace(reply_of(content), prompt_tokens=read, completion_tokens=written, top=top)
    if reply.text is not None:
        reply = replace(reply, text=blank(reply.text, key))
    return Answer(reply=reply, counted=usage is not None)


def reply_of(content: dict[str, Any]) -> Reply:
    """Return the first choice's text and why it ended, or why there is none. Reasoning in fields of its own is left out."""
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    finish = choice.get("finish_reason") if isinstance(choice, dict) else None
    finish = cut(finish) if isinstance(finish, str) else None
    text = _text_of(message.get("content")) if isinstance(message, dict) else None
    reasoned = isinstance(message, dict) and _reasoning_in(message)
    if text is not None and (text.strip() or not reasoned):
        return Reply(text=_storable(text), finish=finish)
    if reasoned:
        ended = f" (finish_reason {finish!r})" if finish else ""
        return Reply(text=None, error=f"the answer holds reasoning and nothing after it{ended}", finish=finish)
    return Reply(text=None, error=cut(f"the answer holds no text: {json.dumps(choice)}"), finish=finish)


def _text_of(content: Any) -> str | None:
    """Return a message's content, which is a text or a list of parts, or None where it is neither."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return None
    answers = [part for part in content if part.get("type", "text") not in ("thinking", "reasoning", "redacted_thinking")]
    texts = [part.get("text") for part in answers if part.get("type", "text") in ("text", "output_text")]
    if len(texts) < len(answers) or not all(isinstance(text, str) for text in texts):
        return None
    return "".join(texts) if content else None


def _reasoning_in(message: dict[str, Any]) -> bool:
    """Say whether a message holds reasoning apart from its answer."""
    content = message.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return any(part.get("type") in ("thinking", "reasoning", "redacted_thinking") for part in parts) or any(
        message.get(field) for field in ("reasoning", "reasoning_content", "reasoning_details")
    )


def top_of(content: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the likeliest first tokens of the first choice with the logarithms of their probabilities; empty if not given.

    A list with anything in it that is no such pair is no list of them.
    """
    node: Any = content
    for step in ("choices", 0, "logprobs", "content", 0, "top_logprobs"):
        if isinstance(step, int):
            node = node[0] if isinstance(node, list) and node else None
        else:
            node = node.get(step) if isinstance(node, dict) else None
    pairs = [_pair(entry) for entry in node] if isinstance(node, list) else []
    return [pair for pair in pairs if pair is not None] if all(pairs) else []


def _pair(entry: Any) -> tuple[str, float] | None:
    if not isinstance(entry, dict):
        return None
    token, logp = entry.get("token"), entry.get("logprob")
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
    complaint = content
    for name in ("error", "message", "detail"):
        if isinstance(complaint, dict) and complaint.get(name):
            complaint = complaint[name]
    return cut(complaint if isinstance(complaint, str) else text or "no reason given")


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, at most `MOST_WAIT_S`, or None where it asks for none.

    The header is a number of seconds or a date (RFC 9110, section 10.2.3).
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        return _seconds_until(header)
    return min(seconds, MOST_WAIT_S) if math.isfinite(seconds) and seconds >= 0 else None


def _seconds_until(header: str) -> float | None:
    try:
        date = parsedate_to_datetime(header)
        aware = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        seconds = (aware - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):  # what the parser of dates raises for what is none
        return None
    return min(max(0.0, seconds), MOST_WAIT_S)


def blank(text: str, key: str | None) -> str:
    return text.replace(key, "[key]") if key and len(key) >= SECRET_CHARACTERS else text


def cut(text: str) -> str:
    text = " ".join(_storable(text).split())
    return text if len(text) <= MESSAGE_CHARACTERS else text[:MESSAGE_CHARACTERS] + " ..."


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # a lone surrogate could be stored nowhere
