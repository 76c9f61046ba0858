"""The whole loop: how busy its workers are, and what it costs beside the work itself.

    python -m benchmarks.loop --json
    python -m benchmarks.loop --json --recipe recipes/demo.toml sampling.k=4

A run of both arms with the embedded model, into a temporary folder. Reported are

- `busy`: of the time that sampling stages take, times the workers, the share that is spent drawing. Starting workers and
  loading models count as time in which nothing is drawn.
- `overhead`: the wall time of the whole command over the sum of the stages' work, minus 1. The work of a stage is what its
  ledger rows add up to, divided by the workers that share it; what is in no row (imports, loading, cutting, storing, waiting
  for the last worker) is overhead.
- by stage: wall seconds, seconds of work, tokens, and tokens per wall second.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inward.config import Recipe
    from inward.runs.ledger import Cost
    from inward.runs.place import Place

STARTED = time.perf_counter()
RECIPE = """
iterations = 1
[model]
path = "smollm2"
[prompts]
per_iteration = 32
validation = 32
sources = [{ kind = "tasks", count = 64, max_constraints = 1 }]
[thought]
format = "specific"
scaffold = { budget = 24 }
[sampling]
k = 8
max_new_tokens = 96
[judge]
kind = "verifiable"
[training]
epochs = 1
learning_rate = 5e-5
batch_pairs = 8
batch_tokens = 2048
[validation]
samples = 4
[execution]
workers = 2
"""
SAMPLING = ("validation", "outputs")


@dataclass(slots=True)
class Clock:
    """A reporter that only looks at its watch: how long each stage took, by its kind."""

    walls: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _stage: str = ""
    _began: float = 0.0

    def begin(self, place: Place, total: int, unit: str) -> None:
        self._stage, self._began = kind_of(place.stage), time.perf_counter()

    def advance(self, items: int, tokens: int) -> None: ...

    def end(self, note: str = "") -> None:
        self.walls[self._stage] += time.perf_counter() - self._began

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def kind_of(stage: str) -> str:
    """Return the stage without the model's name: all validations are one kind, all judging of them another."""
    if stage.startswith("judging"):
        return "judging"
    return stage.split(" ", 1)[0]


def measure(recipe: Recipe, text: str) -> dict[str, Any]:
    """Run the loop once and return its figures."""
    from inward.execution.choose import executing
    from inward.loop import run_loop
    from inward.runs.directory import RunDir
    from inward.runs.ledger import read_costs
    from inward.runs.opening import locked, prepare
    from inward.runs.progress import tracked
    from inward.stages.run import Run

    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        directory = RunDir(Path(name) / "run")
        with locked(directory):
            prepare(directory, recipe, text)
            with tracked(directory.progress, clock) as reporter, executing(recipe.execution) as executor:
                run = Run(recipe, directory, reporter, executor)
                run_loop(run)
        return figures(clock.walls, read_costs(directory.costs), run.workers, time.perf_counter() - STARTED)


def figures(walls: dict[str, float], costs: list[Cost], workers: int, wall: float) -> dict[str, Any]:
    """Return busy, overhead and the figures of each stage."""
    work, tokens = defaultdict[str, float](float), defaultdict[str, int](int)
    for cost in costs:
        work[kind_of(cost.stage)] += cost.seconds
        tokens[kind_of(cost.stage)] += cost.tokens
    shared = {stage: workers if stage in (*SAMPLING, "reference", "reference_check") else 1 for stage in work}
    drawing = sum(work[stage] for stage in SAMPLING)
    total = sum(work[stage] / shared[stage] for stage in work)
    return {
        "busy": round(drawing / (workers * sum(walls[stage] for stage in SAMPLING)), 3),
        "overhead": round(wall / total - 1, 3),
        "wall_s": round(wall, 1),
        "workers": workers,
        "stages": {
            stage: {
                "wall_s": round(walls.get(stage, 0.0), 1),
                "work_s": round(seconds, 1),
                "tokens": tokens[stage],
                "tokens_per_s": round(tokens[stage] / walls[stage]) if walls.get(stage) else None,
            }
            for stage, seconds in sorted(work.items())
        },
    }


def main() -> None:
    from inward.config import load_recipe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--recipe", type=Path, help="a recipe to run in the place of the small one")
    parser.add_argument("overrides", nargs="*", help="settings to change, such as execution.workers=1")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = arguments.recipe or Path(name) / "recipe.toml"
        if arguments.recipe is None:
            path.write_text(RECIPE)
        recipe, text = load_recipe(path, arguments.overrides), path.read_text()
    result = measure(recipe, text)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"workers busy {result['busy']:.0%} of sampling, overhead {result['overhead']:.0%}, {result['wall_s']} s")
    for stage, row in result["stages"].items():
        print(f"  {stage:16} {row['wall_s']:7.1f} s  work {row['work_s']:7.1f} s  {row['tokens_per_s'] or '-':>6} tokens/s")


if __name__ == "__main__":
    main()
