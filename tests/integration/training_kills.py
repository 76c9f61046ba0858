"""Trains in a process of its own that kills itself with SIGKILL just before the n-th time it touches the output folder."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inward.config import TrainingSettings
from inward.training.examples import Example, ReferenceLogps

TOUCHES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}


def in_process(work: Callable[..., None], *arguments: Any) -> int | None:
    """Run in a fork of a server that has imported everything once; return the exit code (negative: the signal)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.llama.modeling_llama", "peft", "inward.training.train"])
    process = context.Process(target=work, args=arguments)
    process.start()
    process.join(timeout=120)
    return process.exitcode


def train_and_die(
    model: Path,
    examples: Sequence[Example],
    reference: Sequence[ReferenceLogps],
    settings: TrainingSettings,
    out: Path,
    dtype: str,
    touch: int | None,
    count: Path,
) -> None:
    """Train; die at the `touch`-th touch of `out`, or write into `count` how many there were."""
    import torch

    from inward.training.train import train

    torch.set_num_threads(1)
    touches = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touches
        if event in TOUCHES and str(arguments[0]).startswith(str(out)):
            touches += 1
            if touches == touch:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    train(model, examples, reference, settings, out, seed=5, dtype=dtype)
    count.write_text(str(touches))


def train_on_a_small_disk(
    model: Path,
    examples: Sequence[Example],
    reference: Sequence[ReferenceLogps],
    settings: TrainingSettings,
    out: Path,
    limit: int,
    report: Path,
) -> None:
    """Train where no file can grow beyond `limit` bytes, and write the error's name and message into `report`."""
    from inward.errors import InwardError
    from inward.training.train import train

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        train(model, examples, reference, settings, out, seed=5, dtype="float32")
    except InwardError as error:
        report.write_text(f"{type(error).__name__}: {error}")
