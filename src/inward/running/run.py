"""A run and its place in the loop: what every stage is handed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inward.config import Recipe
from inward.errors import UsageError
from inward.running.execute import Place, Reporter, devices
from inward.running.rundir import RunDir


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its settings, its directory and whoever is told how far it is."""

    recipe: Recipe
    dir: RunDir
    reporter: Reporter

    @property
    def isolate(self) -> bool:
        """Accelerators get a process a stage, unless the recipe decides; without one a process costs more than it frees."""
        import torch  # noqa: F401 (or `devices` sees none)

        wish = self.recipe.execution.isolate
        return wish if wish is not None else devices() > 0

    @property
    def processes(self) -> int:
        """How many processes share a step of training. Raises UsageError for more than there are GPUs, if there are any."""
        import torch

        wish, gpus = self.recipe.execution.processes, torch.cuda.device_count()
        if wish is not None and wish > gpus > 0:
            raise UsageError(
                f"execution.processes = {wish} needs as many GPUs, one for each, and there are {gpus}: "
                f"set it to {gpus} or fewer, or leave it out"
            )
        return wish or max(1, gpus)


@dataclass(frozen=True, slots=True)
class ArmIteration:
    """One iteration of one arm."""

    run: Run
    arm: str
    t: int

    @property
    def folder(self) -> Path:
        return self.run.dir.iteration(self.arm, self.t)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def finished(self) -> bool:
        return (self.folder / "evaluation.json").exists()

    def place(self, stage: str) -> Place:
        return Place(arm=self.arm, iteration=self.t, stage=stage)

    def seed(self, purpose: str) -> int:
        """A seed that both arms share, and that no other iteration or purpose has."""
        from inward.sampling.sample import seed_for

        return seed_for(self.run.recipe.seed, self.t, purpose)
