"""Prompts shared out: a validation set apart, and new prompts for every iteration (METHOD.md step 1).

Where prompts may recur, the iterations go through those outside of validation in passes: each pass holds every one of them
once, in an order of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from inward.errors import UsageError
from inward.records import Prompt

LIMIT = "the lesser of prompts.max_tokens and what sampling.max_new_tokens leaves of the model's context"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """`iterations[t]` are the prompts of iteration t + 1. No prompt is in two of these, unless they may recur.

    A validation prompt is in no iteration, and no prompt is twice in one.
    """

    validation: tuple[Prompt, ...]
    iterations: tuple[tuple[Prompt, ...], ...]


def draw(
    prompts: Sequence[Prompt], *, per_iteration: int, validation: int, iterations: int, seed: int, recur: bool = False
) -> Draw:
    """Deal out a seeded shuffle of the prompts. It depends on which prompts there are, not on their order.

    Validation comes first, then the iterations in turn: another number of iterations leaves the earlier ones as they were.
    With `recur` a new pass begins wherever the prompts run out; the first one is the same as without.
    UsageError where there are too few prompts, which with `recur` are those of validation and of one iteration.
    """
    needed = validation + per_iteration * (1 if recur else iterations)
    missing = needed - len(prompts)
    if missing > 0:
        each, remedy = (
            ("an iteration", "prompts.per_iteration or prompts.validation")
            if recur
            else (
                f"each of {iterations} iterations",
                "prompts.per_iteration, prompts.validation or iterations, or set prompts.recur to use prompts again",
            )
        )
        raise UsageError(
            f"{missing} prompt{' is' if missing == 1 else 's are'} missing: {validation} for validation and {per_iteration} "
            f"for {each} make {needed}, and there are {len(prompts)}. Add sources, or lower {remedy}"
        )
    deck = sorted(prompts, key=lambda prompt: prompt.id)
    Random(f"inward draw {seed}").shuffle(deck)
    dealt = _deal(deck[validation:], per_iteration, seed)
    return Draw(validation=tuple(deck[:validation]), iterations=tuple(next(dealt) for _ in range(iterations)))


def _deal(deck: Sequence[Prompt], count: int, seed: int) -> Iterator[tuple[Prompt, ...]]:
    """Yield `count` prompts at a time, of one pass over the deck after the other.

    An iteration that lies across two passes takes no prompt of the new one that it has already: these go to its end.
    """
    left, passes = list(deck), 1
    while True:
        taken, left = left[:count], left[count:]
        if len(taken) < count:
            passes += 1
            order = sorted(deck, key=lambda prompt: prompt.id)
            Random(f"inward draw {seed}, pass {passes}").shuffle(order)
            held = {prompt.id for prompt in taken}
            order.sort(key=lambda prompt: prompt.id in held)  # a stable sort
            missing = count - len(taken)
            taken, left = [*taken, *order[:missing]], order[missing:]
        yield tuple(taken)


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
