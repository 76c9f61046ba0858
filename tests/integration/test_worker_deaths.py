"""Workers that the system kills in the middle of a run: the run goes on, and ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inward.runs.directory import RunDir
from inward.runs.ledger import read_costs
from inward.storage import read_json
from tests.integration.test_kill import write_recipe
from tests.integration.test_loop import records

pytestmark = pytest.mark.slow
QUICK = ("arms=['thinking']", "execution.workers=2", "sampling.max_new_tokens=96")


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "inward.cli.main", "run", str(recipe), *QUICK, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers_of(process: int) -> list[int]:
    """Return the ids of a run's worker processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it ended just now
        if int(stat.rpartition(")")[2].split()[1]) == process and b"spawn_main" in command:
            found.append(int(entry.name))
    return found


def stage_of(run: RunDir) -> str | None:
    """Return what the run is at, if that is anything."""
    progress = read_json(run.progress) if run.progress.exists() else {}
    return f"{progress['iteration']} {progress['stage']}" if progress.get("state") == "running" else None


@pytest.mark.skipif(not Path("/proc").exists(), reason="the workers are found in /proc")
def test_a_run_whose_workers_die_ends_like_one_whose_workers_live(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    undisturbed = start(recipe, whole.root)
    assert undisturbed.wait() == 0, undisturbed.stdout and undisturbed.stdout.read()

    instants = random.Random(5)
    process, visited = start(recipe, broken.root), set[str]()
    while process.poll() is None:
        time.sleep(instants.uniform(0.05, 0.3))
        stage, workers = stage_of(broken), workers_of(process.pid)
        if stage and stage not in visited and workers:  # once a stage: three deaths over one shard end a run, as they should
            os.kill(instants.choice(workers), signal.SIGKILL)
            visited.add(stage)
    assert process.stdout
    assert process.returncode == 0, process.stdout.read()
    assert len(visited) >= 2, "a test that kills nobody proves nothing"
    assert records(broken.root) == records(whole.root), "nothing is lost or doubled"
    parts = [(cost.stage, cost.part) for cost in read_costs(broken.costs)]
    assert sorted(parts) == sorted((cost.stage, cost.part) for cost in read_costs(whole.costs)), "every shard is booked once"
    for run in (undisturbed, process):
        assert run.stdout
        run.stdout.close()
