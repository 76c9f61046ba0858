"""From examples to optimiser steps to micro-batches, the same for the same seed whatever order the examples come in.

Each epoch shuffles all pairs and cuts them into steps of `batch_pairs` (the last one may be smaller; its mean is over its
own pairs). Only inside a step are pairs sorted by length and cut by `batch_tokens`, so that padding is small and yet what
a step holds does not depend on length. Both outputs of a pair share a micro-batch, because the loss needs both.

Dimensions: B pairs, R = 2B rows (all chosen, then all rejected), T tokens, N completion tokens that count (weight above 0).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inward.config import TrainingSettings
from inward.training.examples import Example

MicroBatches = list[tuple[Example, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A micro-batch on a device, padded on the right (which a causal model cannot see, so there is no attention mask).

    `where_N` are positions in the flattened [R * T] hidden states that predict `targets_N`, `row_N` their rows and `weights_N`
    what each counts; `counts_R` adds a row's weights up.
    """

    pair_ids: tuple[str, ...]
    tokens_RT: Tensor
    where_N: Tensor
    targets_N: Tensor
    row_N: Tensor
    weights_N: Tensor
    counts_R: Tensor


def steps_per_epoch(examples: Sequence[Example], settings: TrainingSettings) -> int:
    return -(-len(examples) // settings.batch_pairs)


def epoch_steps(examples: Sequence[Example], settings: TrainingSettings, *, seed: int, epoch: int) -> list[MicroBatches]:
    """Return an epoch's optimiser steps, each a list of micro-batches. `epoch` counts from 1."""
    order = sorted(examples, key=lambda example: example.pair_id)
    random.Random(f"{seed}:{epoch}").shuffle(order)
    size = settings.batch_pairs
    return [_micro_batches(order[start : start + size], settings.batch_tokens) for start in range(0, len(order), size)]


def steps_from(
    done: int, examples: Sequence[Example], settings: TrainingSettings, *, seed: int
) -> Iterator[tuple[int, int, MicroBatches]]:
    """Yield (step, epoch, micro-batches) for every step after the first `done`. Steps count from 0, epochs from 1."""
    per_epoch = steps_per_epoch(examples, settings)
    for epoch in range(done // per_epoch + 1, settings.epochs + 1):
        first = (epoch - 1) * per_epoch
        for step, micro_batches in enumerate(epoch_steps(examples, settings, seed=seed, epoch=epoch), start=first):
            if step >= done:
                yield step, epoch, micro_batches


def _micro_batches(examples: Sequence[Example], budget: int) -> MicroBatches:
    """Cut a step so that rows times the longest row stays within `budget` tokens; a pair beyond it comes alone."""
    batches: MicroBatches = []
    current: list[Example] = []
    for example in sorted(examples, key=lambda example: (-example.row_tokens, example.pair_id)):
        longest = current[0].row_tokens if current else example.row_tokens
        if current and 2 * (len(current) + 1) * longest > budget:
            batches.append(tuple(current))
            current = []
        current.append(example)
    return [*batches, tuple(current)]


def collate(examples: Sequence[Example], device: torch.device) -> Batch:
    """Lay out a micro-batch: chosen rows first, then the rejected ones in the same order."""
    completions = [(e.prompt_tokens, e.chosen_tokens, e.chosen_weights) for e in examples]
    completions += [(e.prompt_tokens, e.rejected_tokens, e.rejected_weights) for e in examples]
    width = max(len(prompt) + len(tokens) for prompt, tokens, _ in completions)
    tokens_RT = torch.zeros((len(completions), width), dtype=torch.long)
    where, targets, rows, counted_weights = [], [], [], []
    for row, (prompt, tokens, weights) in enumerate(completions):
        tokens_RT[row, : len(prompt) + len(tokens)] = torch.tensor(prompt + tokens)
        counted = [index for index, weight in enumerate(weights) if weight > 0]
        where += [row * width + len(prompt) - 1 + index for index in counted]
        targets += [tokens[index] for index in counted]
        rows += [row] * len(counted)
        counted_weights += [weights[index] for index in counted]
    return Batch(
        pair_ids=tuple(example.pair_id for example in examples),
        tokens_RT=tokens_RT.to(device),
        where_N=torch.tensor(where, dtype=torch.long, device=device),
        targets_N=torch.tensor(targets, dtype=torch.long, device=device),
        row_N=torch.tensor(rows, dtype=torch.long, device=device),
        weights_N=torch.tensor(counted_weights, dtype=torch.float32, device=device),
        counts_R=torch.tensor([math.fsum(weights) for _, _, weights in completions], dtype=torch.float32, device=device),
    )
