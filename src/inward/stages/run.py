"""A run, and one iteration of an arm in it: what every stage is handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from inward.config import Arm, Recipe
from inward.errors import UsageError
from inward.execution.choose import count_accelerators, count_workers
from inward.execution.complete import complete
from inward.execution.cut import make_shard
from inward.execution.here import Here
from inward.execution.task import NOTHING, Executor, Task
from inward.records import Evaluation
from inward.runs.directory import RunDir
from inward.runs.place import Place
from inward.runs.progress import Reporter, Silent
from inward.storage import read_json

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its settings, its directory, whoever shows how far it is, and whatever does its work."""

    recipe: Recipe
    dir: RunDir
    reporter: Reporter
    executor: Executor = field(default_factory=Here)

    @property
    def started(self) -> date:
        """The day on which the run was begun: what chat templates that write a date are told, also on a later day."""
        stored = read_json(self.dir.inputs) if self.dir.inputs.exists() else {}
        return date.fromisoformat(stored["started"]) if "started" in stored else date.today()

    @property
    def training_processes(self) -> int:
        """How many processes share a step of training. Raises UsageError for more than there are GPUs, if there are any."""
        wish, gpus = self.recipe.execution.processes, count_accelerators(self.recipe.execution)
        if wish is not None and wish > gpus > 0:
            raise UsageError(
                f"execution.processes = {wish} needs as many GPUs, one for each, and there are {gpus}: "
                f"set it to {gpus} or fewer, or leave it out"
            )
        return wish or max(1, gpus)

    def complete(
        self, task: Task[S, T, R], folder: Path, record_type: type[R], *, unit: str, units_per_item: int = 1
    ) -> list[R]:
        """Do what `folder` does not hold of a task, and return all of its records."""
        return complete(
            task,
            folder,
            record_type,
            executor=self.executor,
            ledger=self.dir.costs,
            reporter=self.reporter,
            unit=unit,
            units_per_item=units_per_item,
        )

    @property
    def workers(self) -> int:
        """Over how many workers the shards of a task are spread whose model is on one device."""
        return count_workers(self.recipe.execution)


@dataclass(frozen=True, slots=True)
class ArmIteration:
    """One iteration of one arm."""

    run: Run
    arm: Arm
    t: int

    @property
    def folder(self) -> Path:
        return self.run.dir.iteration(self.arm, self.t)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def optimiser(self) -> Path:
        """What the training of the next iteration goes on from, with `training.carry_optimiser`."""
        return self.folder / "optimiser"

    @property
    def before(self) -> ArmIteration:
        assert self.t > 0, "nothing is before the seed"
        return replace(self, t=self.t - 1)

    @property
    def finished(self) -> bool:
        return (self.folder / "evaluation.json").exists()

    @property
    def outcome(self) -> dict[str, Any]:
        """What `evaluation.json` of a finished iteration holds: the checkpoint that was chosen, and all evaluations."""
        outcome: dict[str, Any] = read_json(self.folder / "evaluation.json")
        return outcome

    @property
    def without_pairs(self) -> int:
        """How many iterations in a row, up to this finished one, gave no pair and went on with the model as it was."""
        return int(self.outcome.get("without_pairs_in_a_row", 0))

    @property
    def evaluation(self) -> Evaluation | None:
        """The evaluation of the model that a finished iteration chose; None where it was not validated."""
        stored = self.outcome["evaluations"].get(self.outcome["chosen"])
        return None if stored is None else Evaluation(**stored)

    @property
    def name(self) -> str:
        return f"{self.arm} iteration {self.t}"

    def place(self, stage: str) -> Place:
        return Place(arm=self.arm, iteration=self.t, stage=stage)

    def seed(self, purpose: str) -> int:
        """Return a seed that both arms share, and that no other iteration or purpose has."""
        from inward.sampling.sample import seed_for

        return seed_for(self.run.recipe.seed, self.t, purpose)

    def complete_at_once(
        self,
        stage: str,
        record_type: type[R],
        items: Sequence[T],
        work: Callable[[Sequence[T]], list[R]],
        *,
        identify: Callable[[T], str],
    ) -> list[R]:
        """Do a stage that is cheap and needs all its items together: one shard, in this process, no progress shown."""

        def do(_: None, shard: Sequence[T], __: Any) -> list[R]:
            return work(shard)

        shard = make_shard(0, 1, items, identify)
        task = Task(place=self.place(stage), shards=(shard,), resource=NOTHING, work=do)
        return complete(
            task,
            self.folder / stage,
            record_type,
            executor=self.run.executor,
            ledger=self.run.dir.costs,
            reporter=Silent(),
            unit="items",
        )
