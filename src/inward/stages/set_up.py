"""The set-up of a process that runs a model."""

from __future__ import annotations

import functools
import warnings

from inward import hardware
from inward.config import Recipe


def set_up(recipe: Recipe, processes: int = 1) -> None:
    """Give torch in this process its share of the processor, and show no progress bars but ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    # peft asks transformers for an attribute that the latter has renamed; nothing a user could act on.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    hardware.set_up(recipe.execution.threads or max(1, _all_threads() // processes))


@functools.cache
def _all_threads() -> int:
    """Return the threads that torch starts with. Asked once: `set_up` changes the number for the stages after it."""
    import torch

    return torch.get_num_threads()
