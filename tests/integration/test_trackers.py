"""Trackers show what metrics.jsonl records, go on at the right step, and can fail without harm. TensorBoard is read back."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from inward.config import TrainingSettings
from inward.errors import MissingExtraError, RunChangedError, StorageError
from inward.training.metrics import read_metrics
from inward.training.trackers import _survives, require_packages
from tests.integration.test_training_options import PLAIN, Killed, contents, trained
from tests.tiny import tiny_model

TRACKED = PLAIN.model_copy(update={"trackers": ("tensorboard",)})

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own


@pytest.fixture(scope="module")
def seed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), hidden=16, spread=0.1)


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_what_metrics_jsonl_records_also_after_a_kill(seed_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trained(seed_model, tmp_path, TRACKED, kill_at=5)
    assert (tmp_path / "state" / "step_00000004").exists()  # so step 5 was told and will be taken again
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5]
    trained(seed_model, tmp_path, TRACKED)
    steps, found = read_metrics(tmp_path / "metrics.jsonl"), scalars(tmp_path)
    assert len(steps) == 9
    for name in ("loss", "margin", "accuracy", "chosen_logp", "rejected_logp", "kl_on_pairs", "grad_norm", "tokens_per_s"):
        assert [step for step, _ in found[f"train/{name}"]] == [step.step for step in steps], name
        values = [value for _, value in found[f"train/{name}"]]
        assert values == pytest.approx([getattr(step, name) for step in steps], rel=1e-6), name


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(
    seed_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracked, plain = tmp_path / "tracked", tmp_path / "plain"
    tracked.mkdir()
    (tracked / "tensorboard").write_text("a file where its folder should be")
    trained(seed_model, tracked, TRACKED)
    assert "the tracker tensorboard failed and is left out" in caplog.text
    trained(seed_model, plain, PLAIN)
    found = contents(tracked)
    del found["tensorboard"]
    assert found == contents(plain)


def test_a_full_disk_is_not_taken_for_the_trackers_failure() -> None:
    def full() -> None:
        raise StorageError("no space left")

    with pytest.raises(StorageError):
        _survives("chatty", full)


def test_what_a_tracker_prints_is_kept_out_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """`inward run --json` prints one JSON object there."""
    assert _survives("chatty", lambda: print("hello"))
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hello\n")


def test_trackers_are_no_part_of_what_is_trained(seed_model: Path, tmp_path: Path) -> None:
    trained(seed_model, tmp_path, PLAIN)
    assert len(trained(seed_model, tmp_path, TRACKED)) == PLAIN.epochs
    with pytest.raises(RunChangedError):
        trained(seed_model, tmp_path, PLAIN.model_copy(update={"gap_offset": 1.0}))


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_said_at_once(tracker: Any) -> None:
    if importlib.util.find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    with pytest.raises(MissingExtraError, match=rf"pip install 'inward\[{tracker}\]'"):
        require_packages(TrainingSettings(trackers=(tracker,)))
