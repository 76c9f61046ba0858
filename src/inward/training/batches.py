"""From examples to optimiser steps to micro-batches, the same for the same seed whatever order the examples come in.

Each epoch shuffles all pairs and cuts them into steps of `batch_pairs` (the last one may be smaller; its mean is over its
own pairs). Only inside a step are pairs sorted by length and cut by `batch_tokens`, so that what a step holds does not depend
on length. Both outputs of a pair share a micro-batch, because the loss needs both. A micro-batch is laid out in one of three
ways (`training.batching`):

- "shared": one row without padding. A pair's prompt stands in it once, before its two outputs, neither of which sees the other;
- "packed": one row without padding, in which each output has its prompt before it;
- "padded": a row an output, for models whose attention `attention` cannot replace.

Dimensions: B pairs, R = 2B sequences (all chosen, then all rejected), N completion tokens that count (weight above 0).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inward.config import Batching, TrainingSettings
from inward.hardware import to_device
from inward.training.attention import Layout, Segment
from inward.training.examples import Example

MicroBatches = list[tuple[Example, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A micro-batch on a device: token ids in one packed row [1, T], or in padded rows [R, T] and then without a `layout`.

    `where_N` are positions in the flattened hidden states that predict `targets_N`, `sequence_N` their sequences and
    `weights_N` what each counts; `counts_R` adds a sequence's weights up. Padding is on the right, where no token sees it.
    """

    pair_ids: tuple[str, ...]
    tokens: Tensor
    positions: Tensor | None
    layout: Layout | None
    where_N: Tensor
    targets_N: Tensor
    sequence_N: Tensor
    weights_N: Tensor
    counts_R: Tensor


def steps_per_epoch(examples: Sequence[Example], settings: TrainingSettings) -> int:
    return -(-len(examples) // settings.batch_pairs)


def epoch_steps(examples: Sequence[Example], settings: TrainingSettings, *, seed: int, epoch: int) -> list[list[Example]]:
    """Return an epoch's optimiser steps, each the pairs it holds. `epoch` counts from 1."""
    order = sorted(examples, key=lambda example: example.pair_id)
    random.Random(f"{seed}:{epoch}").shuffle(order)
    size = settings.batch_pairs
    return [order[start : start + size] for start in range(0, len(order), size)]


def steps_from(
    done: int, examples: Sequence[Example], settings: TrainingSettings, *, seed: int
) -> Iterator[tuple[int, int, list[Example]]]:
    """Yield (step, epoch, pairs) for every step after the first `done`. Steps count from 0, epochs from 1."""
    per_epoch = steps_per_epoch(examples, settings)
    for epoch in range(done // per_epoch + 1, settings.epochs + 1):
        first = (epoch - 1) * per_epoch
        for step, pairs in enumerate(epoch_steps(examples, settings, seed=seed, epoch=epoch), start=first):
            if step >= done:
                yield step, epoch, pairs


def micro_batches(examples: Sequence[Example], budget: int, batching: Batching) -> MicroBatches:
    """Cut pairs so that each micro-batch holds at most `budget` tokens, padding included; a pair beyond it comes alone."""
    batches: MicroBatches = []
    current: list[Example] = []
    for example in sorted(examples, key=lambda example: (-example.row_tokens, example.pair_id)):
        if current and held_tokens([*current, example], batching) > budget:
            batches.append(tuple(current))
            current = []
        current.append(example)
    return [*batches, tuple(current)] if current else []


def held_tokens(examples: Sequence[Example], batching: Batching) -> int:
    """Return the token positions that a micro-batch computes."""
    if batching == "padded":
        return 2 * len(examples) * max(example.row_tokens for example in examples)
    return sum(example.tokens if batching == "packed" else example.unique_tokens for example in examples)


def most_tokens(examples: Sequence[Example], settings: TrainingSettings) -> int:
    """Return the most token positions that a micro-batch can come to hold: the budget, or a pair beyond it."""
    return max(settings.batch_tokens, *(held_tokens([example], settings.batching) for example in examples))


def collate(examples: Sequence[Example], device: torch.device, batching: Batching = "padded") -> Batch:
    """Lay out a micro-batch. Sequences are numbered chosen first, then the rejected ones in the same order.

    On a GPU nothing here waits for it, so a micro-batch is laid out while the one before is computed.
    """
    tokens, layout, starts_R, prompt_ends_R = _padded(examples) if batching == "padded" else _packed(examples, batching)
    outputs = [(e.chosen_tokens, e.chosen_weights) for e in examples] + [
        (e.rejected_tokens, e.rejected_weights) for e in examples
    ]
    where, targets, sequences, counted_weights = [], [], [], []
    for sequence, (output, weights) in enumerate(outputs):
        counted = [index for index, weight in enumerate(weights) if weight > 0]
        where += [starts_R[sequence] + index - 1 if index else prompt_ends_R[sequence] - 1 for index in counted]
        targets += [output[index] for index in counted]
        sequences += [sequence] * len(counted)
        counted_weights += [weights[index] for index in counted]
    counts = [math.fsum(weights) for _, weights in outputs]
    return Batch(
        pair_ids=tuple(example.pair_id for example in examples),
        tokens=to_device(tokens, device),
        positions=None if layout is None else to_device(torch.tensor([layout.positions()]), device),
        layout=layout,
        where_N=to_device(torch.tensor(where, dtype=torch.long), device),
        targets_N=to_device(torch.tensor(targets, dtype=torch.long), device),
        sequence_N=to_device(torch.tensor(sequences, dtype=torch.long), device),
        weights_N=to_device(torch.tensor(counted_weights, dtype=torch.float32), device),
        counts_R=to_device(torch.tensor(counts, dtype=torch.float32), device),
    )


Placement = tuple[Tensor, Layout | None, list[int], list[int]]
"""Token ids, how they are cut, and in the flattened ids where each output starts and where its prompt ends."""


def _packed(examples: Sequence[Example], batching: Batching) -> Placement:
    tokens: list[int] = []
    segments: list[Segment] = []
    starts: dict[tuple[bool, int], int] = {}
    prompt_ends: dict[tuple[bool, int], int] = {}
    for pair, example in enumerate(examples):
        prompt = (0, 0)
        for rejected, output in enumerate((example.chosen_tokens, example.rejected_tokens)):
            begin = len(tokens)
            if batching == "packed":
                tokens += example.prompt_tokens
                prompt = (begin, len(tokens))
            elif not rejected:
                tokens += example.prompt_tokens
                prompt = (begin, len(tokens))
                segments.append(Segment(*prompt))
                begin = len(tokens)
            starts[bool(rejected), pair], prompt_ends[bool(rejected), pair] = len(tokens), prompt[1]
            tokens += output
            segments.append(Segment(begin, len(tokens), *(prompt if batching == "shared" else (0, 0))))
    order = sorted(starts)
    return torch.tensor([tokens]), Layout(tuple(segments)), [starts[key] for key in order], [prompt_ends[key] for key in order]


def _padded(examples: Sequence[Example]) -> Placement:
    rows = [(*e.prompt_tokens, *e.chosen_tokens) for e in examples] + [(*e.prompt_tokens, *e.rejected_tokens) for e in examples]
    width = max(map(len, rows))
    tokens_RT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    starts = [row * width + len(example.prompt_tokens) for row, example in enumerate([*examples, *examples])]
    return tokens_RT, None, starts, starts
