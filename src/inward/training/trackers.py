"""What each step measured, told to TensorBoard, W&B, MLflow or trackio as well, through accelerate's trackers.

metrics.jsonl is the record; a tracker is a view of it. So a tracker that fails, whatever it raises, is left out from there on
with a warning, and the training goes on. Nothing is sent anywhere unless the user has said so: W&B runs offline unless
WANDB_MODE says otherwise (`wandb sync` sends it later), MLflow and trackio write to local files unless their own environment
variables name a server.

    out/tensorboard/    TensorBoard's event files: `tensorboard --logdir RUN` shows a run's arms and iterations side by side
    out/wandb/          W&B's files
    out/trackers.json   the ids under which W&B and MLflow go on with a run after a kill

A resumed training goes on at the step after its last saved state. What a killed one had told beyond that is dropped by
TensorBoard and told again, with the same values, to the others.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from inward.config import TrainingSettings
from inward.errors import InwardError, MissingExtraError
from inward.storage import read_json, write_json
from inward.training.metrics import StepMetrics

log = logging.getLogger(__name__)

Tell = Callable[[StepMetrics], None]


def require_packages(settings: TrainingSettings) -> None:
    """Raise MissingExtraError for a tracker, an optimiser or a quantised base that is asked for and not installed."""
    low_bits = settings.optimiser == "adamw_8bit" or settings.quantise is not None
    packages: list[str] = [*settings.trackers, *(["bitsandbytes"] if low_bits else [])]
    for package in packages:  # by its distribution: a folder that a tracker left behind could be imported by its name
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise MissingExtraError(package, package) from None


@contextmanager
def tracking(settings: TrainingSettings, out: Path, *, name: str, done: int) -> Iterator[Tell]:
    """Give a function that tells every tracker of a step; `done` steps have been told before. Close them all at the end.

    Only the main process tells anything.
    """
    live: dict[str, Any] = {}
    if _main_process(settings):
        for asked in settings.trackers:
            _survives(asked, partial(_start, live, asked, settings, out, name, done))

    def tell(step: StepMetrics) -> None:
        values = {f"train/{key}": value for key, value in asdict(step).items() if value is not None and key != "step"}
        for kind, tracker in list(live.items()):
            if not _survives(kind, partial(tracker.log, values, step=step.step)):
                del live[kind]

    try:
        yield tell
    finally:
        for kind, tracker in live.items():
            _survives(kind, tracker.finish)


def _main_process(settings: TrainingSettings) -> bool:
    if not settings.trackers:
        return False
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _start(live: dict[str, Any], kind: str, settings: TrainingSettings, out: Path, name: str, done: int) -> None:
    from accelerate import tracking as trackers

    path = out / "trackers.json"
    ids: dict[str, str] = read_json(path) if path.exists() else {}
    project = settings.tracker_project
    if kind == "tensorboard":
        tracker = trackers.TensorBoardTracker("tensorboard", out, **({"purge_step": done + 1} if done else {}))
    elif kind == "wandb":
        ids.setdefault(kind, uuid.uuid4().hex)
        mode = os.environ.get("WANDB_MODE", "offline")
        tracker = trackers.WandBTracker(project, name=name, id=ids[kind], resume="allow", dir=str(out), mode=mode)
    elif kind == "mlflow":
        tracker = trackers.MLflowTracker(project, run_id=ids.get(kind), run_name=name)
    else:
        tracker = trackers.TrackioTracker(project, name=name, resume="allow" if done else "never")
    tracker.start()
    if kind == "mlflow":
        ids[kind] = tracker.tracker.info.run_id
    if kind in ids:
        write_json(path, ids)
    live[kind] = tracker


def _survives(kind: str, call: Callable[[], object]) -> bool:
    try:
        with redirect_stdout(sys.stderr):  # some greet; standard output is for what the user asked for
            call()
    except InwardError:  # of our own files, a full disk say: not the tracker's matter
        raise
    except Exception as error:  # noqa: BLE001 (another project's code, files and network: no list of its errors is complete)
        log.warning("the tracker %s failed and is left out from here on; metrics.jsonl has everything: %s", kind, error)
        return False
    return True
