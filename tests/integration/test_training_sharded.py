"""Sharded training: each of two processes holds half, and it is the training of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from inward.config import LoraSettings
from tests.integration.test_training_processes import PLAIN, SETTINGS, alone, assert_same, together
from tests.integration.training_team import Inputs
from tests.pairs import made_examples, stored_reference
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    model = tiny_model(tmp_path_factory.mktemp("tiny"), hidden=16, spread=0.1)
    examples = made_examples(9)  # steps of 4, 4 and 1 pairs: in the last one a process has none
    return model, examples, stored_reference(model, examples, PLAIN, dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_sharded_over_two_is_one(inputs: Inputs, kind: str, tmp_path: Path) -> None:
    one = alone(inputs, SETTINGS[kind], tmp_path / "one")
    assert_same(together(inputs, SETTINGS[kind], tmp_path / "two", shard=True), one)
