"""What the commands that look into a run share: which arm and iteration is meant, and its records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inward.config import Arm, Recipe
from inward.errors import UsageError
from inward.records import Output, Pair, Prompt, Score
from inward.runs.directory import RunDir
from inward.runs.opening import open_existing
from inward.runs.shards import read_stage
from inward.thought import ThoughtFormat


@dataclass(frozen=True, slots=True)
class View:
    """One iteration of one arm, to be read."""

    run: RunDir
    recipe: Recipe
    arm: Arm
    t: int

    @property
    def folder(self) -> Path:
        return self.run.iteration(self.arm, self.t)

    @property
    def format(self) -> ThoughtFormat:
        return self.recipe.thought_format(self.arm)

    def prompts(self) -> list[Prompt]:
        return read_stage(self.folder / "prompts", Prompt)

    def outputs(self) -> list[Output]:
        return read_stage(self.folder / "outputs", Output)

    def scores(self) -> list[Score]:
        return read_stage(self.folder / "scores", Score)

    def pairs(self) -> list[Pair]:
        return read_stage(self.folder / "pairs", Pair)


def open_view(path: str | Path, arm: str | None, iteration: int | None, needs: str, *, weights: bool = False) -> View:
    """Open one iteration that has `needs` (a stage's folder or a file): the one asked for, else the latest.

    The arm is the thinking one unless said otherwise. Raises UsageError where there is none, naming what there is.
    """
    run, recipe = open_existing(path, weights=weights)
    chosen: Arm | None = next((name for name in recipe.arms if name == (arm or recipe.arms[0])), None)
    if chosen is None:
        raise UsageError(f"{path} has no arm {arm!r}; its arms are {', '.join(recipe.arms)}")
    have = [t for t in run.iterations(chosen) if _holds(run.iteration(chosen, t) / needs)]
    if not have:
        raise UsageError(f"{path} has no {needs} of the {chosen} arm yet; `inward status {path}` shows how far it is")
    if iteration is not None and iteration not in have:
        there = ", ".join(map(str, have))
        raise UsageError(f"iteration {iteration} of the {chosen} arm has no {needs}; those that have: {there}")
    return View(run, recipe, chosen, have[-1] if iteration is None else iteration)


def _holds(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))
