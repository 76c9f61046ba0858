"""Sampler, judge, reference and trainer take turns on one device: after each, memory is what it was before."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.turns import held, turns

# peft reads an attribute of transformers that is to be renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def _uncollected() -> Iterator[None]:
    """What is only freed when Python looks for cycles may be freed too late: an accelerator has no memory to wait with."""
    logging.disable()  # pytest keeps what is logged, and with an error the frames where it was caught, and all that these hold
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_uncollected")
def test_memory_is_back_after_each_turn(tmp_path: Path) -> None:
    before = held()
    for name, at_work, after in turns(tmp_path):
        assert at_work - before > 50_000, f"{name} held no model: nothing was measured"
        assert after - before < 5_000, f"{name} left {after - before} bytes behind"
