"""How likely given continuations are, to a loaded model: no token is drawn, and what texts share is read once.

The texts are sorted, so that those which begin alike stand together, and walked as a tree: where enough of them share enough
tokens, these are read once and their keys and values kept for all below; the rest of each is then read side by side, padded
on the right (causal: padding comes after). Only an exact beginning is ever shared. Battles of a tournament share the judge's
task with all others, the question with those of their prompt, and the first answer with those in which it stands first.

The output head is computed in float32, at the positions that are asked about only: in bf16 logits have eight bits, and two
verdicts would tie for no better reason than rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from inward.hardware import exact_float32, to_device

Tokens = tuple[int, ...]
PAYS = 64
"""Tokens that reading a beginning once has to spare."""
BATCH_TOKENS = 4096
AT_ONCE = 128
"""Texts that are walked together."""
VOCABULARY_BLOCK = 8192


@dataclass(frozen=True, slots=True)
class _Row:
    """Tokens to read: a stem, then all but the last token of the longest of some continuations."""

    tokens: Tokens
    stem: int
    text: int


@torch.inference_mode()
def continuation_logps(
    model: Any, stems: Sequence[Tokens], tails: Sequence[Tokens], *, rows: int, share: bool
) -> list[list[float]]:
    """Return log P(tail | stem), natural, for each stem and each tail in order; at most `rows` texts are read side by side.

    `share` reads beginnings once, which is right for full causal attention only.
    """
    assert all((*stems, *tails)), "a text to go on from and a continuation have at least one token"
    results: list[list[float]] = [[0.0] * len(tails) for _ in stems]
    order = sorted(range(len(stems)), key=lambda text: stems[text])
    with _full_attention(model, share), _head(model) as ask:
        for start in range(0, len(order), AT_ONCE):
            chosen = order[start : start + AT_ONCE]
            reader = _Reader(model=model, ask=ask, tails=tuple(tails), rows=rows, results=results)
            lines = [_Row(stems[text] + rest, len(stems[text]), text) for text in chosen for rest in _reads(tails)]
            lines.sort(key=lambda row: row.tokens)
            reader.read(reader.walk(lines, None, 0) if share else lines, None, 0)
    return results


def _reads(tails: Sequence[Tokens]) -> list[Tokens]:
    """Return the shortest list of beginnings of tails which holds, as a beginning, all of each tail but its last token."""
    heads = sorted({tail[:-1] for tail in tails})
    return [head for head in heads if not any(other != head and other[: len(head)] == head for other in heads)]


@dataclass(slots=True)
class _Reader:
    """One walk. `results[text][tail]` takes the results; `ask` are the (row, position) of which the head is computed."""

    model: Any
    ask: list[tuple[int, int]]
    tails: tuple[Tokens, ...]
    rows: int
    results: list[list[float]]

    def walk(self, lines: list[_Row], past: Any, depth: int) -> list[_Row]:
        """Read what `lines`, sorted and alike up to `depth`, share; return those that nothing was read for beyond `past`."""
        end = min(row.stem for row in lines) - 1  # what follows the stem's last token is asked about
        common = min(_common(lines[0].tokens, lines[-1].tokens), end)
        pays = (len(lines) - 1) * (common - depth) >= PAYS
        if pays:
            past, depth = self._extend(past, lines[0].tokens[depth:common]), common
        left: list[_Row] = []
        for part in [lines] if common == end else _split(lines, common):
            left += part if common == end or len(part) == 1 else self.walk(part, past, depth)
        if not pays:
            return left
        self.read(left, past, depth)
        return []

    def read(self, lines: list[_Row], past: Any, depth: int) -> None:
        """Read the rest of each line after the `depth` tokens in `past`, longest first, and note what was asked."""
        waiting = sorted(lines, key=lambda row: -len(row.tokens))
        while waiting:
            longest = len(waiting[0].tokens) - depth
            count = max(1, min(self.rows, BATCH_TOKENS // longest))
            batch, waiting = waiting[:count], waiting[count:]
            ids = [list(row.tokens[depth:]) + [0] * (longest - len(row.tokens) + depth) for row in batch]
            self.ask[:] = [
                (index, position - 1 - depth)
                for index, row in enumerate(batch)
                for position in range(row.stem, len(row.tokens) + 1)
            ]
            logits = self._forward(ids, None if past is None else _fork(past, len(batch))).logits
            self._note(batch, torch.log_softmax(logits.float(), dim=-1))

    def _note(self, batch: Sequence[_Row], logps_NV: torch.Tensor) -> None:
        """Add up the tokens of every tail that a row holds. They are read from the device once for the whole batch."""
        sums: list[tuple[int, int, int]] = []
        positions: list[int] = []
        tokens: list[int] = []
        start = 0
        for row in batch:
            rest = row.tokens[row.stem :]
            for index, tail in enumerate(self.tails):
                if rest[: len(tail) - 1] == tail[:-1]:
                    sums.append((row.text, index, len(tail)))
                    positions += range(start, start + len(tail))
                    tokens += tail
            start += len(rest) + 1
        indices = to_device(torch.tensor([positions, tokens]), logps_NV.device)
        values = iter(logps_NV[indices[0], indices[1]].tolist())
        for text, index, length in sums:
            self.results[text][index] = sum(islice(values, length))

    def _extend(self, past: Any, tokens: Tokens) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache() if past is None else _fork(past, 1)
        self.ask.clear()
        self._forward([list(tokens)], cache)
        return cache

    def _forward(self, ids: list[list[int]], cache: Any) -> Any:
        read = to_device(torch.tensor(ids), self.model.device)
        return self.model(read, past_key_values=cache, use_cache=cache is not None)


def _fork(past: Any, rows: int) -> Any:
    """Return a cache of the same beginning for so many rows. Reading on replaces a layer's tensors, never writes into them."""
    cache = copy.copy(past)
    cache.layers = [copy.copy(layer) for layer in past.layers]
    if rows > 1:
        cache.batch_repeat_interleave(rows)
    return cache


def _common(first: Tokens, last: Tokens) -> int:
    """Return how many tokens two texts share at the beginning, and so all that are sorted between them."""
    return next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def _split(lines: Sequence[_Row], common: int) -> list[list[_Row]]:
    """Cut sorted lines where the token at `common` changes; a line that ends there stands alone."""
    parts: list[list[_Row]] = []
    for row in lines:
        if parts and parts[-1][0].tokens[common : common + 1] == row.tokens[common : common + 1]:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


@contextmanager
def _full_attention(model: Any, share: bool) -> Iterator[None]:
    """Let the model read several tokens after a beginning, which the attention that decodes shared prefixes does not."""
    usual = model.config._attn_implementation
    if share:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if share:
            model.set_attn_implementation(usual)


@contextmanager
def _head(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Make the output head compute the listed (row, position) alone, as [N, V], in float32 where it is a plain product."""
    head: Any = model.get_output_embeddings()
    ask: list[tuple[int, int]] = []
    usual, own = head.forward, vars(head).get("forward")

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        indices = to_device(torch.tensor(ask, dtype=torch.long).view(-1, 2), hidden.device)
        asked = hidden[indices[:, 0], indices[:, 1]]
        if type(head) is not torch.nn.Linear:
            logits: torch.Tensor = usual(asked)
            return logits
        asked, parts = asked.float(), []
        for start in range(0, head.out_features, VOCABULARY_BLOCK):
            block = slice(start, start + VOCABULARY_BLOCK)
            bias = None if head.bias is None else head.bias[block].float()
            with exact_float32():
                parts.append(torch.nn.functional.linear(asked, head.weight[block].float(), bias))
        return torch.cat(parts, dim=-1)

    head.forward = forward
    try:
        yield ask
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own
