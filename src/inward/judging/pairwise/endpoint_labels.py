"""How likely each label is as the one token that an OpenAI-compatible server is asked for: `logprobs` and `top_logprobs`.

A server lists its likeliest tokens only. What is not listed is at most as likely as the least likely listed one, and all such
tokens together as likely as the listed ones leave over; a label gets these bounds, and a battle is decided only where
they decide it (`by_probability.decide`). One token is all that is asked for, so that an answer cut off after it is a whole one;
one that a filter withheld, or that begins with reasoning, is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inward.errors import JudgeError
from inward.judging.pairwise.comparer import LabelLogps, Reply, Stopped
from inward.judging.pairwise.endpoint import EndpointChat
from inward.judging.pairwise.replies import why_incomplete
from inward.judging.spending import Spending

COUNT = 20
"""Likeliest tokens that are asked for: OpenAI's limit and vLLM's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLabelScorer:
    """A `LabelScorer` behind an endpoint. A label is one token there, with or without a blank before it."""

    chat: EndpointChat
    bare: bool = True

    @property
    def name(self) -> str:
        return self.chat.name

    def costs(self) -> Spending:
        return self.chat.costs()

    def score_labels(self, conversations: Sequence[Sequence[dict[str, str]]], labels: Sequence[str]) -> list[LabelLogps]:
        """Return the labels' values for each conversation, in order. Raises `JudgeError` where the server gives none at all."""
        try:
            replies = self.chat.first_tokens(conversations, count=COUNT)
        except Stopped as stop:
            raise Stopped(str(stop), {index: _label_logps(reply, labels) for index, reply in stop.answered.items()}) from stop
        answered = [reply for reply in replies if reply.text is not None]
        if answered and not any(reply.top for reply in answered):
            raise JudgeError(
                f"{self.chat.name} answers without the probabilities of its tokens (logprobs), so judge.verdict = "
                "'probability' cannot be used with it. Set judge.verdict = 'text', or use a server that gives them"
            )
        return [_label_logps(reply, labels) for reply in replies]


def _label_logps(reply: Reply, labels: Sequence[str]) -> LabelLogps:
    error = reply.error or why_incomplete(reply)
    if error or reply.top is None:
        error = error or "the answer holds no probabilities of its tokens"
        return LabelLogps(low=None, high=None, error=error, raw=reply.text or "")
    listed: dict[str, float] = {}
    for token, logp in reply.top:  # different tokens may be written alike
        listed[token] = listed.get(token, 0.0) + math.exp(logp)
    least = math.exp(min(logp for _, logp in reply.top))
    beyond = max(0.0, 1.0 - sum(listed.values()))
    low, high = [], []
    for label in labels:
        written = [listed[token] for token in (label, f" {label}") if token in listed]
        low.append(_log(sum(written)))
        high.append(_log(sum(written) if written else min(beyond, 2 * least)))
    if not any(low_one > -math.inf for low_one in low):
        shown = ", ".join(repr(token) for token, _ in reply.top[:5])
        error = f"none of the verdicts is among the likeliest tokens, which begin with {shown}"
        return LabelLogps(low=None, high=None, error=error, raw=reply.text or "")
    return LabelLogps(low=tuple(low), high=tuple(high), raw=reply.text or "")


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0.0 else -math.inf
