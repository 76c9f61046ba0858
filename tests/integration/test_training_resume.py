"""SIGKILL at any touch of the disk: the resumed training stores what an uninterrupted one stores, byte for byte."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from inward.config import LoraSettings, TrainingSettings
from inward.training.examples import Example, ReferenceLogps
from tests.integration.training_kills import in_process, train_and_die, train_on_a_small_disk
from tests.pairs import made_examples, stored_reference
from tests.tiny import tiny_model

KILLS = 6
PLAIN = TrainingSettings(epochs=2, batch_pairs=2, batch_tokens=64, save_steps=2, learning_rate=1e-3)
SETTINGS = {
    "full": (PLAIN.model_copy(update={"objective": "irpo"}), "bfloat16"),  # bf16 over fp32 masters
    "lora": (PLAIN.model_copy(update={"lora": LoraSettings(rank=2, dropout=0.3)}), "float32"),  # with random numbers
}
Inputs = tuple[Path, list[Example], list[ReferenceLogps]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    model = tiny_model(tmp_path_factory.mktemp("tiny"), hidden=16)
    examples = made_examples(5)  # three steps an epoch, the last one of a single pair
    return model, examples, stored_reference(model, examples, PLAIN, dtype="float32")


def contents(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    assert all(line.pop("seconds") > 0 and line.pop("tokens_per_s") > 0 and line.pop("mfu") > 0 for line in lines)
    return found | {"metrics.jsonl": lines}


def run(inputs: Inputs, kind: str, out: Path, touch: int | None, count: Path) -> int | None:
    settings, dtype = SETTINGS[kind]
    return in_process(train_and_die, *inputs, settings, out, dtype, touch, count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_a_kill_at_any_touch_of_the_disk_changes_nothing(inputs: Inputs, kind: str, tmp_path: Path) -> None:
    count, whole = tmp_path / "count", tmp_path / "whole"
    assert run(inputs, kind, whole, None, count) == 0
    expected = contents(whole)
    assert [line["step"] for line in expected["metrics.jsonl"]] == [1, 2, 3, 4, 5, 6]
    assert len([name for name in expected if name.startswith("epoch_")]) >= 4
    assert {Path(name).parts[0] for name in expected} == {"epoch_01", "epoch_02", "metrics.jsonl", "training.json"}
    touches = int(count.read_text())
    for index in range(KILLS):
        out = tmp_path / f"killed-{index}"
        assert run(inputs, kind, out, 1 + index * (touches - 1) // (KILLS - 1), count) == -signal.SIGKILL
        assert run(inputs, kind, out, None, count) == 0
        assert contents(out) == expected
        shutil.rmtree(out)


@pytest.mark.slow
def test_killed_again_and_again(inputs: Inputs, tmp_path: Path) -> None:
    count, whole, out = tmp_path / "count", tmp_path / "whole", tmp_path / "out"
    assert run(inputs, "full", whole, None, count) == 0
    before = -1
    for touch in range(40, 400, 7):
        code = run(inputs, "full", out, touch, count)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        for epoch in out.glob("epoch_*"):
            assert (epoch / "model.safetensors").exists()
        assert before <= (before := len(list(out.glob("epoch_*"))))
    else:
        pytest.fail("never finished")
    assert touch > 40
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_finished(inputs: Inputs, tmp_path: Path) -> None:
    """The masters (fp32) of this model fit the limit, its moments (twice as large) do not."""
    size = (inputs[0] / "model.safetensors").stat().st_size
    report, out, whole = tmp_path / "report", tmp_path / "out", tmp_path / "whole"
    assert in_process(train_on_a_small_disk, *inputs, PLAIN, out, int(1.5 * size), report) == 0
    assert report.read_text().startswith("StorageError: cannot write ")
    assert "ulimit -f" in report.read_text()
    assert not list(out.glob("state/*"))
    for folder in (out, whole):
        assert in_process(train_and_die, *inputs, PLAIN, folder, "float32", None, tmp_path / "count") == 0
    assert contents(out) == contents(whole)
