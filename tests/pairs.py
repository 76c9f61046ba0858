"""Made-up training examples for the tiny models, the same for the same seed."""

from __future__ import annotations

import random
from pathlib import Path

from inward.config import TrainingSettings
from inward.training.examples import Example, ReferenceLogps


def made_examples(count: int, *, seed: int = 0, longest: int = 14, written: int = 0) -> list[Example]:
    """Return examples with prompts and completions of 1 to `longest` bytes, the first `written` tokens of each weighing 0."""
    draw = random.Random(seed)

    def tokens(least: int = 1) -> tuple[int, ...]:
        return tuple(draw.randrange(256) for _ in range(draw.randint(least, longest)))

    found = []
    for index in range(count):
        prompt, chosen, rejected = tokens(), tokens(written + 1), tokens(written + 1)
        found.append(
            Example(
                pair_id=f"pair-{index:02d}",
                prompt_tokens=prompt,
                chosen_tokens=chosen,
                chosen_weights=tuple(float(position >= written) for position in range(len(chosen))),
                rejected_tokens=rejected,
                rejected_weights=tuple(float(position >= written) for position in range(len(rejected))),
            )
        )
    return found


def stored_reference(path: Path, examples: list[Example], settings: TrainingSettings, *, dtype: str) -> list[ReferenceLogps]:
    """Return what the reference stage stores for a model folder."""
    from inward.training.reference import load_reference, reference_logps

    return reference_logps(load_reference(path, settings, dtype=dtype), examples, settings)
