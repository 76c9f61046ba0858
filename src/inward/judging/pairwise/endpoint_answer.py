"""What an OpenAI-compatible server's answer holds: a reply, a refusal, a trouble that may pass, or the end of all asking.

Everything here is a function of status, headers and body alone, and takes whatever a server may send.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from inward.engines.endpoint.http_answer import Refusal, SettingNames, Trouble, Useless, blank, cut, read_http, storable
from inward.judging.pairwise.comparer import Reply

MOST_TOKENS = 10**9
"""A larger count is no count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply of the model; `counted` says whether the server counted its tokens."""

    reply: Reply
    counted: bool


NAMES = SettingNames(key="endpoint.key_env", model="endpoint.model", address="endpoint.base_url", path="/chat/completions")


def read_answer(status: int, headers: Mapping[str, str], text: str, key: str | None) -> Answer | Refusal | Trouble | Useless:
    """Return what an answer comes to. The key is blanked out of whatever the server says."""
    content = read_http(status, headers, text, key, NAMES)
    return _read(content, key) if isinstance(content, dict) else content


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
        return Reply(text=storable(text), finish=finish)
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
