"""A whole run over a Ray cluster in which nodes, workers and the run's own process are killed, each in another stage."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from inward.execution.worker import IN_WORK
from inward.runs.ledger import SPENT, read_costs
from tests.cluster import Nodes
from tests.integration.test_kill import contents, write_recipe
from tests.tiny_reward import tiny_reward_model

OVERRIDES = (
    "arms=['thinking']",
    "prompts.per_iteration=8",
    "sampling.max_new_tokens=96",
    "training.epochs=3",
    "training.batch_pairs=1",
    "execution.shard_prompts=1",
    "execution.workers=2",
)


@dataclass(frozen=True, slots=True)
class Kill:
    """What is killed, once something of this name is stored, if a process of the name `doing` is at work."""

    stage: str
    what: Literal["node", "worker", "driver"]
    once: str
    doing: str = "_Serving"


KILLS = (
    Kill("validation of the seed", "worker", "iter_000/validation/seed/outputs/part-*"),
    Kill("sampling", "node", "iter_001/outputs/part-*"),
    Kill("sampling", "driver", "iter_001/outputs/part-*"),
    Kill("judging", "node", "iter_001/verdicts/part-*"),
    Kill("training", "node", "iter_001/checkpoints/state/step_*", "RayTrainWorker"),
    Kill("training", "driver", "iter_001/checkpoints/epoch_01", "RayTrainWorker"),
    Kill("validation", "node", "iter_001/validation/epoch_01/outputs/part-*"),
)
MOST_RUNS = 4
"""So often is a run started anew because a kill came too late."""


@dataclass
class Report:
    """What became of runs: who was killed in which stage, what was stored then and is gone or was made again, and which files
    differ from those of a run on this machine."""

    killed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def write_inputs(folder: Path) -> Path:
    """Write the recipe of a run whose every stage but the pairing is work for nodes: also its judge is a model."""
    recipe = write_recipe(folder)
    judge = tiny_reward_model(folder / "judge")
    recipe.write_text(recipe.read_text().replace('kind = "verifiable"', f'kind = "reward_model"\npath = "{judge}"'))
    return recipe


def command(recipe: Path, out: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "inward.cli.main", "run", str(recipe), *OVERRIDES, *overrides, "--out", str(out)]


def run_here(recipe: Path, out: Path) -> None:
    subprocess.run(command(recipe, out), check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run_until_all_are_killed(recipe: Path, folder: Path, nodes: Nodes) -> Report:
    """Run on this machine, then over a cluster, again and anew while some kill came too late for its stage."""
    run_here(recipe, folder / "here")
    report, missed = Report(), KILLS
    for attempt in range(MOST_RUNS):
        there = folder / f"there-{attempt}"
        missed = run_with_kills(recipe, there, nodes, missed, report)
        report.different += differences(folder / "here", there)
        if not missed:
            break
    return report


def run_with_kills(recipe: Path, out: Path, nodes: Nodes, kills: tuple[Kill, ...], report: Report) -> tuple[Kill, ...]:
    """Run over a cluster, kill what is to be killed, and start the run again whenever that was its own process.

    Returns the kills that found nobody: their stage was over by then.
    """
    stored, missed = dict[Path, int](), list[Kill]()
    waiting = list(kills)
    log = out.with_suffix(".log")
    while True:
        with log.open("a") as file:
            run = subprocess.Popen(command(recipe, out, f"execution.ray='{nodes.address}'"), stdout=file, stderr=file)
        while run.poll() is None:
            kill = next((kill for kill in waiting if any((out / "thinking").glob(kill.once))), None)
            if kill:
                waiting.remove(kill)
                if _strike(kill, run, nodes):
                    report.killed.append(f"{kill.what} in {kill.stage}")
                    stored |= _finished(out)
                else:
                    missed.append(kill)
            time.sleep(0.005)
        if run.returncode != -9:
            break
    assert run.returncode == 0, log.read_text()
    now = _finished(out)
    report.lost += [str(path) for path, identity in stored.items() if now.get(path) != identity]
    return (*missed, *waiting)


def differences(one: Path, other: Path) -> list[str]:
    """Return the files of two runs that differ by more than times, what judges spent, and the setting that names the cluster.

    What judges spent is booked as time goes by, in rows of its own while a shard is in work, and a shard that is done again is
    paid for again: `answers` counts it.
    """
    left, right = _comparable(one), _comparable(other)
    return [name for name in sorted(left.keys() | right.keys()) if left.get(name) != right.get(name)]


def answers(root: Path) -> int:
    """Return how many answers of judges a run has paid for."""
    return sum(cost.judge_answers for cost in read_costs(root / "costs.jsonl"))


def _comparable(root: Path) -> dict[str, Any]:
    found = contents(root)
    found["config.json"]["execution"].pop("ray")
    rows = [row for row in found["costs.jsonl"] if row["part"] != IN_WORK]
    found["costs.jsonl"] = [{name: value for name, value in row.items() if name not in SPENT} for row in rows]
    found["summary.json"].pop("judging")
    return found


def _strike(kill: Kill, run: subprocess.Popen[bytes], nodes: Nodes) -> bool:
    if kill.what == "driver":
        run.kill()
        run.wait()
        return True
    if kill.what == "worker":
        return nodes.kill_worker(kill.doing)
    struck = nodes.kill_node(kill.doing)
    if struck:
        nodes.add_one()
    return struck


def _finished(out: Path) -> dict[Path, int]:
    """Return the files of finished shards, and what tells one from another of the same name."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
