"""What a training is given, the mark it leaves so that nothing else goes on in its folder, and what it says when it stops."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from inward.config import TrainingSettings
from inward.errors import RunChangedError, TrainingError
from inward.models.identity import content_digest
from inward.storage import read_json, remove_leftovers, storage_errors, write_bytes, write_json
from inward.training.batches import steps_per_epoch
from inward.training.examples import Example, ReferenceLogps
from inward.training.memory import Budget
from inward.training.metrics import PairTerms
from inward.training.optimiser import learning_rate
from inward.training.team import ALONE, Team


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where a training stands among all those of a run, for an optimiser that goes on over them (`carry_optimiser`).

    It is number `iteration` of `iterations`, and goes on from the weights and moments in the folder `state`, which an earlier
    one left; None where there is none yet.
    """

    iteration: int
    iterations: int
    state: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything a run of training is given. With `only_last` no checkpoint is wanted but that of the last epoch."""

    model_path: Path
    examples: tuple[Example, ...]
    held_out: tuple[Example, ...]
    reference: Mapping[str, ReferenceLogps]
    settings: TrainingSettings
    out: Path
    seed: int
    budget: Budget
    team: Team = ALONE
    course: Course | None = None
    only_last: bool = False

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(self.examples, self.settings)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        In a course the whole run is taken to have as many steps in every iteration as there are in this one: nobody knows how
        many pairs later iterations will give, so the schedule's progress counts in iterations.
        """
        total = self.settings.epochs * self.per_epoch
        if self.course is None:
            return learning_rate(step, total, self.settings)
        before = (self.course.iteration - 1) * total
        return learning_rate(before + step, self.course.iterations * total, self.settings)

    def stores(self, epoch: int) -> bool:
        """Say whether an epoch's checkpoint is stored. With an early stop nobody knows which is the last one."""
        return not self.only_last or self.settings.early_stop is not None or epoch == self.settings.epochs

    def epoch(self, number: int) -> Path:
        return self.out / f"epoch_{number:02d}"


def claim(job: Job, dtype: str) -> None:
    """Make `out`, refuse one that was made from something else, and clear what a killed call left behind."""
    examples = (*job.examples, *job.held_out)
    identity = {
        "examples": _digest([asdict(example) for example in sorted(examples, key=lambda example: example.pair_id)]),
        "reference": _digest([asdict(job.reference[pair_id]) for pair_id in sorted(job.reference)]),
        "model": content_digest(job.model_path),
        "settings": job.settings.model_dump(mode="json", exclude={"trackers", "tracker_project", "tracker_run"}),
        "seed": job.seed,
        "dtype": dtype,
    }
    if job.course is not None:
        identity["course"] = {"iteration": job.course.iteration, "goes_on": job.course.state is not None}
    path = job.out / "training.json"
    with storage_errors(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
        (job.out / "bad_batch.json").unlink(missing_ok=True)
    remove_leftovers(job.out)
    if not path.exists():
        write_json(path, identity)
        return
    before = read_json(path)
    changed = [key for key in identity if before.get(key) != identity[key]]
    if changed:
        raise RunChangedError(
            f"{job.out} was trained with other {', '.join(changed)}: give the same as before, or another output folder"
        )


def stop(job: Job, what: str, step: int, epoch: int, examples: Sequence[Example], terms: Sequence[PairTerms]) -> NoReturn:
    """Store the offending pairs for inspection and raise, in all processes. No weight was changed by this step."""
    by_id = {term.pair_id: term for term in terms}
    rows = [
        asdict(example)
        | {name: str(value) for name, value in asdict(by_id[example.pair_id]).items() if name != "pair_id"}
        | {f"reference_{name}": str(getattr(job.reference.get(example.pair_id), name, None)) for name in ("chosen", "rejected")}
        for example in examples
    ]
    path = job.out / "bad_batch.json"
    if job.team.main:
        write_bytes(path, (json.dumps({"step": step + 1, "epoch": epoch, "reason": what, "pairs": rows}) + "\n").encode())
    job.team.wait()
    raise TrainingError(
        f"{what} of step {step + 1} is not finite; its pairs are {', '.join(example.pair_id for example in examples)}. "
        f"They are stored in {path} with their log-probabilities. Lower training.learning_rate, or set "
        "model.dtype = 'float32'; the last checkpoint is unharmed"
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
