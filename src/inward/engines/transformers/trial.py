"""Which decoder serves a model: the trial of both, against plain forward passes over each text alone.

A trial is a small batch as `decode` makes them: prompts of different lengths, some with several rows, some steps, rows that
are dropped on the way. Each step's logits are compared with those that the model gives to the same text by itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch

from inward.engines.transformers.decode import Decoder
from inward.engines.transformers.likelihood import continuation_logps
from inward.engines.transformers.padded import PaddedDecoder
from inward.engines.transformers.shared_prefix import NAME, SharedPrefixDecoder
from inward.models.architectures import Way, choose_way, difference, refusal
from inward.models.miniature import miniature
from inward.models.tokenizer import encode_chat

QUESTIONS = ("What is the capital of France?", "Name a river of Europe and say where it rises.")
REPLIES = ("The capital of France is Paris.", "Paris is the capital of France.", "The Rhine rises in the Alps.")
REPLY_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts with so many rows each, and for each row the tokens that it is fed; `kept[s]` are the rows left after step s."""

    prompts: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    replies: tuple[tuple[int, ...], ...]
    kept: dict[int, tuple[int, ...]]

    def texts(self) -> list[tuple[int, ...]]:
        rows = [prompt for prompt, count in zip(self.prompts, self.counts, strict=True) for _ in range(count)]
        return [prompt + reply for prompt, reply in zip(rows, self.replies, strict=True)]


def ordinary_batch(tokenizer: Any, context: int) -> Batch:
    """Return a batch of ordinary chat prompts and replies, cut to the context.

    On nonsense a model in bf16 is chaotic, and two correct ways to compute the same attention disagree.
    """
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [encode_chat(tokenizer, chat)[: context - REPLY_TOKENS] for chat in chats]
    replies = [tuple(tokenizer(reply, add_special_tokens=False).input_ids)[:REPLY_TOKENS] for reply in REPLIES]
    return Batch(tuple(prompts), (2, 1), tuple(replies), {0: (1, 2)})


def random_batch(vocabulary: int) -> Batch:
    """Return a batch of random tokens, for a miniature: prompts and replies cross its windows of a few tokens."""
    generator = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, vocabulary - 10) for _ in range(count))

    prompts = tuple(tokens(count) for count in (21, 9, 14, 2))
    return Batch(prompts, (2, 1, 2, 1), tuple(tokens(8) for _ in range(6)), {3: (0, 2, 4, 5), 5: (1, 2)})


@torch.inference_mode()
def choose_decoder(
    model: Any | None, ordinary: Batch | None, *, small: Any | None
) -> tuple[Literal["shared", "padded"] | None, list[str]]:
    """Return which decoder serves a model (None: neither), and why not a faster one.

    `model` is tried with the batch `ordinary`; without it, its miniature `small` decides alone.
    """

    def batch(tried: Any, exact: bool) -> Batch:
        if exact:
            return random_batch(tried.get_input_embeddings().num_embeddings)
        assert ordinary is not None
        return ordinary

    def shared(tried: Any, exact: bool) -> float:
        expected = plain_logits(tried, batch(tried, exact).texts())
        with with_attention(tried, NAME):
            distance = worst(decoded(SharedPrefixDecoder(tried, []), batch(tried, exact), tried.device), expected)
            return max(distance, likelihood_difference(tried, share=True)) if exact else distance

    def padded(tried: Any, exact: bool) -> float:
        expected = plain_logits(tried, batch(tried, exact).texts())
        distance = worst(decoded(PaddedDecoder(tried), batch(tried, exact), tried.device), expected)
        return max(distance, likelihood_difference(tried, share=False)) if exact else distance

    name, reasons = choose_way(model, [Way("shared", True, shared), Way("padded", False, padded)], small)
    assert name in ("shared", "padded", None)
    return name, reasons  # type: ignore[return-value]


def require_decoder(model: Any, tokenizer: Any, context: int) -> tuple[Literal["shared", "padded"], list[str]]:
    """Return which decoder serves a loaded model, and why not a faster one. Raises `UsageError` where neither is right."""
    name, reasons = choose_decoder(model, ordinary_batch(tokenizer, context), small=miniature(model.config))
    if name is None:
        raise refusal(model, "sampled", reasons[-1])
    return name, reasons


def plain_logits(model: Any, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the logits [T, V] of each text, read alone."""
    return [model(torch.tensor([list(text)], device=model.device), use_cache=False).logits[0].float() for text in texts]


def decoded(decoder: Decoder, batch: Batch, device: torch.device) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Decode a batch; yield row, position in the row's text and logits [V] for every row and step."""
    decoder.admit(batch.prompts, batch.counts)
    texts = batch.texts()
    rows = list(range(len(texts)))
    for step in range(len(batch.replies[0])):
        positions = [len(texts[row]) - len(batch.replies[row]) - 1 + step for row in rows]
        tokens = [texts[row][position] for row, position in zip(rows, positions, strict=True)]
        logits_RV = decoder.step(torch.tensor(tokens, device=device))
        yield from zip(rows, positions, logits_RV, strict=True)
        if step in batch.kept:
            rows = [rows[row] for row in decoder.keep(batch.kept[step])]


def worst(steps: Iterator[tuple[int, int, torch.Tensor]], expected: Sequence[torch.Tensor]) -> float:
    """Return the difference of the row that differs most, on the mean over its steps."""
    by_row: dict[int, list[float]] = {}
    for row, position, logits_V in steps:
        by_row.setdefault(row, []).append(difference(logits_V, expected[row][position]))
    return max(sum(values) / len(values) for values in by_row.values())


def likelihood_difference(model: Any, *, share: bool) -> float:
    """Return how far the log-probabilities of continuations are from those of plain forward passes."""
    batch = random_batch(model.get_input_embeddings().num_embeddings)
    trunk = batch.prompts[0] * 2  # long enough to be read once for all
    stems = [trunk + prompt for prompt in batch.prompts[1:]]
    tails = [batch.replies[0][:1], batch.replies[1][:3]]
    logps = continuation_logps(model, stems, tails, rows=3, share=share)
    expected = []
    for stem, tail in product(stems, tails):
        logps_TV = plain_logits(model, [stem + tail])[0].log_softmax(-1)[len(stem) - 1 :]
        expected.append(sum(float(logps_TV[index, token]) for index, token in enumerate(tail)))
    return difference(torch.tensor(logps).flatten(), torch.tensor(expected))


@contextmanager
def with_attention(model: Any, name: str) -> Iterator[None]:
    """Give a model another attention function inside the block."""
    usual = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)
