"""What both sides of benchmarks/training.py are given: the same pairs in tokens, and how a side reports."""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
from dataclasses import dataclass, fields
from typing import Any, Self

import torch

from inward.training.examples import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One measurement. The first `warmup_steps` steps are not counted; `lora` is a rank, 0 for full training.

    With `quantise` the adapter's base is held in 4 bits. Without `varlen` packs on a GPU are computed in padded rows, whatever
    the trial of the variable-length kernels says.
    """

    model: str
    steps: int = 3
    warmup_steps: int = 1
    batch_pairs: int = 16
    prompt: int = 125
    completion: int = 235
    lora: int = 0
    quantise: bool = False
    threads: int = 2
    trl_batch: int = 4
    trl_checkpointing: bool = True
    precision: str = "autocast"
    batch_tokens: int = 4096
    batching: str = "shared"
    varlen: bool = True

    @classmethod
    def from_arguments(cls, parser: argparse.ArgumentParser) -> Self:
        """Read a measurement that another process has written with `to_json`."""
        parser.add_argument("work", help="a measurement as a JSON object")
        return cls(**json.loads(parser.parse_args().work))

    def to_json(self) -> str:
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)})


def make_pairs(work: Work) -> list[Example]:
    """Return pairs whose lengths vary as those of real outputs do: log-normal completions, prompts of nearly one length.

    The tokens are drawn at random: what is measured does not depend on which they are.
    """
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1000, 40000) for _ in range(count))

    def length() -> int:
        return min(4 * work.completion, max(8, round(draw.lognormvariate(0.0, 0.6) * work.completion / 1.197)))

    found = []
    for index in range(work.steps * work.batch_pairs):
        prompt = tokens(round(work.prompt * draw.uniform(0.85, 1.15)))
        chosen, rejected = tokens(length()), tokens(length())
        found.append(
            Example(
                pair_id=f"{index:06d}",
                prompt_tokens=prompt,
                chosen_tokens=chosen,
                chosen_weights=(1.0,) * len(chosen),
                rejected_tokens=rejected,
                rejected_weights=(1.0,) * len(rejected),
            )
        )
    return found


def counted(work: Work, pairs: list[Example]) -> list[Example]:
    """Return the pairs of the steps that are counted."""
    return pairs[work.warmup_steps * work.batch_pairs :]


def report(work: Work, pairs: list[Example], seconds: float, peak_mib: float, **more: Any) -> str:
    """Return one JSON object on the counted `pairs`."""
    tokens = sum(pair.tokens for pair in pairs)
    return json.dumps({"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds, "peak_mib": peak_mib, **more})


def peak_memory_mib() -> float:
    """Return the most memory this process has held: tensors on a GPU where it computed on one, else all of its own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
