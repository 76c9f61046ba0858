"""Prompts shared out: a validation set apart, and new prompts for every iteration (METHOD.md step 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from inward.errors import UsageError
from inward.records import Prompt

LIMIT = "the lesser of prompts.max_tokens and what sampling.max_new_tokens leaves of the model's context"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """No prompt is in two of these. `iterations[t]` are the prompts of iteration t + 1."""

    validation: tuple[Prompt, ...]
    iterations: tuple[tuple[Prompt, ...], ...]


def draw(prompts: Sequence[Prompt], *, per_iteration: int, validation: int, iterations: int, seed: int) -> Draw:
    """Deal out a seeded shuffle of the prompts. It depends on which prompts there are, not on their order.

    Validation comes first, then the iterations in turn: another number of iterations leaves the earlier ones as they were.
    UsageError where there are too few prompts.
    """
    needed = validation + per_iteration * iterations
    missing = needed - len(prompts)
    if missing > 0:
        raise UsageError(
            f"{missing} prompt{' is' if missing == 1 else 's are'} missing: {validation} for validation and {per_iteration} "
            f"for each of {iterations} iterations make {needed}, and there are {len(prompts)}. Add sources, or lower "
            "prompts.per_iteration, prompts.validation or iterations"
        )
    deck = sorted(prompts, key=lambda prompt: prompt.id)
    Random(f"inward draw {seed}").shuffle(deck)
    starts = range(validation, needed, per_iteration)
    return Draw(
        validation=tuple(deck[:validation]),
        iterations=tuple(tuple(deck[start : start + per_iteration]) for start in starts),
    )


def check_lengths(
    prompts: Sequence[Prompt], count_tokens: Callable[[str], int], limit: int, unusable: Literal["error", "drop"]
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """Return the prompts of at most `limit` tokens, and a note on how many were dropped, if any.

    UsageError that names the first one that is too long, unless `unusable` is "drop"; or where none is left.
    """
    kept = []
    for prompt in prompts:
        count = count_tokens(prompt.text)
        if count <= limit:
            kept.append(prompt)
        elif unusable == "error":
            raise UsageError(
                f"prompt {prompt.id} of {prompt.source} has {count} tokens, more than {limit}, {LIMIT}; it begins "
                f"{prompt.text[:60]!r}. Raise the limit, or set prompts.unusable = 'drop' to leave such prompts out"
            )
    if prompts and not kept:
        raise UsageError(f"every prompt has more than {limit} tokens, {LIMIT}: raise the limit")
    dropped = len(prompts) - len(kept)
    notes = (f"{dropped} prompt{'s' * (dropped > 1)} of more than {limit} tokens dropped",) if dropped else ()
    return tuple(kept), notes
