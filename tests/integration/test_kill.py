"""SIGKILL at any instant of any stage: the finished run equals one that was never interrupted, byte for byte but for times."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inward.store.index import LOCAL_ONLY
from tests.tiny import tiny_model

KILLS = 24
TIMES = {"started", "updated", "seconds", "device_seconds", "peak_memory", "tokens_per_s", "mfu"}
TRIGGERS = (
    None,
    "config.json",
    "thinking/iter_000/validation/seed/outputs/*.parquet",
    "direct/iter_000/validation/seed/verdicts",
    "comparison/*iter_000.json",
    "thinking/iter_001/prompts",
    "thinking/iter_001/outputs/*.parquet",
    "thinking/iter_001/verdicts",
    "thinking/iter_001/scores",
    "thinking/iter_001/pairs",
    "thinking/iter_001/reference",
    "thinking/iter_001/checkpoints",
    "thinking/iter_001/checkpoints/state",
    "thinking/iter_001/checkpoints/*epoch_01",
    "thinking/iter_001/checkpoints/*epoch_02",
    "thinking/iter_001/validation/epoch_01/outputs",
    "thinking/iter_001/validation/epoch_02",
    "thinking/iter_001/*model",
    "thinking/iter_001/*evaluation.json",
    "direct/iter_001/outputs",
    "direct/iter_001/checkpoints",
    "direct/iter_001/checkpoints/*epoch_0?",
    "direct/iter_001/*model",
    "*summary.json",
)


RECIPE = """
iterations = 1
[model]
path = "{model}"
dtype = "float32"
[prompts]
per_iteration = 6
validation = 4
sources = [{{ kind = "file", path = "{prompts}" }}]
[thought]
format = "specific"
scaffold = {{ budget = 6 }}
[sampling]
k = 4
max_new_tokens = 24
cut_off_responses = "allow"
[judge]
kind = "verifiable"
[training]
epochs = 2
learning_rate = 1e-3
batch_pairs = 2
save_steps = 1
[execution]
shard_prompts = 2
threads = 1
isolate = false
"""


def write_recipe(folder: Path, model: str | None = None) -> Path:
    """Write a recipe for a tiny model, or for the one that `model` names."""
    model = model or str(tiny_model(folder / "seed", spread=0.05))
    prompts = folder / "prompts.jsonl"
    rows = [
        {
            "prompt": f"Say something about topic {n}.",
            # About half of the responses of a random model meet these: they have two or three words where it thinks first,
            # and five where it does not.
            "instruction_id_list": [
                "punctuation:no_comma",
                "length_constraints:number_words",
                "length_constraints:number_words",
            ],
            "kwargs": [{}, {"num_words": 3, "relation": "at least"}, {"num_words": 5, "relation": "at least"}],
        }
        for n in range(12)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model, prompts=prompts))
    return recipe


class Forks:
    """The fork server of forks.py."""

    def __init__(self, log: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "tests.integration.forks"]
        self.log = log
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, *argv: str, after: str | None = None, delay: float | None = None) -> dict[str, int]:
        assert self.process.stdin
        assert self.process.stdout
        order = {"argv": argv, "log": str(self.log), "after": after, "delay": delay}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    server = Forks(tmp_path / "log.txt")
    yield server
    server.close()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def contents(root: Path) -> dict[str, Any]:
    """Return every file of a run: JSON without its times, all else as bytes."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir() or name in LOCAL_ONLY:
            continue
        if path.suffix == ".jsonl":
            found[name] = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.slow
def test_killed_anywhere_the_run_ends_the_same(tmp_path: Path, forks: Forks) -> None:
    recipe = write_recipe(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert forks.run("run", str(recipe), "--out", str(whole)) == {"code": 0}, forks.log.read_text()
    expected = contents(whole)
    assert len(expected) > 40

    instants = random.Random(7)
    killed = 0
    for trigger in TRIGGERS:
        after = str(broken / trigger) if trigger else None
        answer = forks.run("run", str(recipe), "--out", str(broken), after=after, delay=instants.uniform(0.0, 0.1))
        assert answer in ({"signal": signal.SIGKILL}, {"code": 0}), forks.log.read_text()
        killed += answer == {"signal": signal.SIGKILL}
    while killed < KILLS:  # a trigger that came too late to kill: kill that often somewhere in a fresh run instead
        other = tmp_path / "other"
        answer = forks.run("run", str(recipe), "--out", str(other), delay=instants.uniform(0.05, 4.0))
        killed += answer == {"signal": signal.SIGKILL}
        if answer == {"code": 0}:
            assert contents(other) == expected
            subprocess.run(["rm", "-r", str(other)], check=True)
    for run in (broken, tmp_path / "other"):
        if run.exists():
            assert forks.run("run", str(recipe), "--out", str(run)) == {"code": 0}, forks.log.read_text()
            found = contents(run)
            assert sorted(found) == sorted(expected)
            for name, content in expected.items():
                assert found[name] == content, f"{name} differs after the kills"
