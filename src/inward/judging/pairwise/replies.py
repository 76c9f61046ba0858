"""What counts of a judge's reply: only one that came to its end, and of it only what follows the reasoning.

A verdict in a reply that was cut off, or that a filter shortened, is not a verdict: what the reply would have come to is not
known. A verdict in a judge's reasoning is not one either: the judge was still weighing. Both are errors that keep the text.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from inward.config import VerdictForm
from inward.judging.pairwise.comparer import Outcome, Reply
from inward.judging.pairwise.verdicts import read_verdict

COMPLETE: Final = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete"})
CUT_OFF: Final = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
WITHHELD: Final = frozenset({"content_filter", "safety", "recitation", "refusal", "blocklist", "prohibited_content", "spii"})
"""Words that servers use for why an answer ended (OpenAI, vLLM, TGI, Mistral, Cohere, Anthropic, Gemini), in lower case."""

REASONING_TAGS: Final = "think|thinking|thought|thoughts|reasoning|reflection|analysis|seed:think|longcat_think"
_OPENING = re.compile(
    rf"<(?:{REASONING_TAGS})(?:\s[^<>]{{0,64}})?(?<!/)>"
    r"|<\|(?:begin_of_thought|start_thinking|thought_start)\|>|\[think\]|\u25c1think\u25b7|<unused94>thought"
    r"|<\|channel\|>\s*(?:analysis|commentary)|<\|channel>\s*thought"
    r"|\A\s*(?-i:analysis(?=[A-Z\"'*]))",  # the channel's name alone is left where special tokens were taken out
    re.IGNORECASE,
)
_CLOSING = re.compile(
    rf"</(?:{REASONING_TAGS})\s*>"
    r"|<\|(?:end_of_thought|end_thinking|thought_end)\|>|\[/think\]|\u25c1/think\u25b7|<unused95>"
    r"|<\|channel\|>\s*final[^<\n]{0,64}<\|message\|>|<channel\|>"
    r"|(?-i:assistantfinal)",
    re.IGNORECASE,
)


def read_reply(reply: Reply, form: VerdictForm, max_tokens: int) -> Outcome:
    """Return the outcome that a reply states. Every other reply is an error that keeps the text."""
    text = reply.text
    if text is None or reply.error is not None:
        assert reply.error, "a reply has either a text or an error"
        return Outcome(value=None, error=reply.error, raw=text or "")
    if incomplete := why_incomplete(reply, max_tokens):
        return Outcome(value=None, error=incomplete, raw=text)
    answer = after_reasoning(text)
    if answer is None:
        return Outcome(value=None, error="the reasoning was not closed, so no answer follows it", raw=text)
    return replace(read_verdict(answer, form), raw=text)


def why_incomplete(reply: Reply, max_tokens: int | None = None) -> str | None:
    """Return why a reply is not all that the judge had to say, or None where it is.

    A server that does not say why an answer ended, and one that says "stop" of every answer, are held to the limit: an
    answer of just `max_tokens` tokens was cut off. With `max_tokens` None, as where one token is asked for, no length is.
    """
    finish, tokens = (reply.finish or "").lower(), reply.completion_tokens
    if max_tokens is not None:
        at_limit = tokens == max_tokens or (tokens > max_tokens and not finish)
        if finish in CUT_OFF or at_limit:
            return f"the answer was cut off at {tokens} tokens" if tokens else "the answer was cut off"
    if not finish or finish in COMPLETE | CUT_OFF:
        return None
    if finish in WITHHELD:
        return f"a filter withheld the answer or a part of it (finish_reason {reply.finish!r})"
    return f"the answer is not known to be complete (finish_reason {reply.finish!r})"


def after_reasoning(text: str) -> str | None:
    """Return what follows the last closed reasoning in a text, or None where reasoning is open at its end.

    The opening may be missing: many chat templates write it before the model's turn begins.
    """
    return None if open_reasoning(text) else text[_last_closing(text) :]


def open_reasoning(text: str) -> str | None:
    """Return the mark that opens the reasoning in which a text ends, or None where it does not end in reasoning."""
    opening = _OPENING.search(text, _last_closing(text))
    return None if opening is None else opening[0]


def marks_reasoning(text: str) -> bool:
    return bool(_OPENING.search(text) or _CLOSING.search(text))


def _last_closing(text: str) -> int:
    """Return the index in a text after the last mark that closes reasoning, 0 where there is none."""
    return max((closing.end() for closing in _CLOSING.finditer(text)), default=0)
