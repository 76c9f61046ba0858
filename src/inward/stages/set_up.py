"""The set-up of a process that runs a model."""

from __future__ import annotations

import functools
import socket
import warnings
from pathlib import Path

from inward import hardware
from inward.config import Recipe
from inward.errors import UsageError


def set_up(recipe: Recipe, processes: int = 1, *, model: Path | None = None) -> None:
    """Give torch in this process its share of the processor, and show no progress bars but ours.

    On a cluster that share is what Ray gave it. Raises UsageError where this node of it does not see the folder of `model`.
    """
    from transformers.utils import logging

    if recipe.execution.ray is not None:
        processes = 1
        if model is not None and not model.exists():
            raise UsageError(
                f"node {socket.gethostname()} does not see the model {model}: put it into a folder that all nodes share under "
                "the same name, and name that folder in the recipe"
            )
    logging.disable_progress_bar()
    # peft asks transformers for an attribute that the latter has renamed; nothing a user could act on.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    hardware.set_up(recipe.execution.threads or max(1, _all_threads() // processes))


@functools.cache
def _all_threads() -> int:
    """Return the threads that torch starts with. Asked once: `set_up` changes the number for the stages after it."""
    import torch

    return torch.get_num_threads()
