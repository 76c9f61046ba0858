"""A whole run that draws with vLLM, killed while it does: gone on with, it ends as one that was never interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.integration.test_kill import contents
from tests.tiny import tiny_model

MINE = """
def prompts():
    for number in range(8):
        yield f"Say something about topic {number}."

def score(prompt, responses):
    return [text.count("e") / (1 + len(text)) for text in responses]
"""
RECIPE = """
iterations = 1
arms = ["thinking"]
[model]
path = "{model}"
dtype = "float32"
[prompts]
per_iteration = 4
validation = 2
sources = [{{ kind = "python", function = "{mine}:prompts" }}]
[thought]
format = "specific"
scaffold = {{ budget = 6 }}
[sampling]
engine = "vllm"
k = 4
rows = 8
max_new_tokens = 24
cut_off_responses = "allow"
[judge]
kind = "python"
function = "{mine}:score"
lowest = 0.0
highest = 1.0
[training]
epochs = 1
learning_rate = 1e-3
batch_pairs = 2
reference = "sampler"
[execution]
shard_prompts = 2
threads = 1
isolate = false
"""


def run(recipe: Path, out: Path, log: Path, kill_after: str | None = None) -> int:
    command = [sys.executable, "-c", "from inward.cli.main import main; main()", "run", str(recipe), "--out", str(out)]
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"})
        while process.poll() is None:
            if kill_after is not None and list(out.glob(kill_after)):
                process.send_signal(signal.SIGKILL)
            time.sleep(0.05)
    return process.returncode


def test_a_run_with_vllm_that_is_killed_ends_the_same(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "seed", spread=0.05, tied=False, hidden=128, heads=4, kv_heads=2)
    mine, recipe, log = tmp_path / "mine.py", tmp_path / "recipe.toml", tmp_path / "log.txt"
    mine.write_text(MINE)
    recipe.write_text(RECIPE.format(model=model, mine=mine))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(recipe, whole, log) == 0, log.read_text()
    assert run(recipe, broken, log, "thinking/iter_001/outputs/*.parquet") == -signal.SIGKILL
    assert run(recipe, broken, log) == 0, log.read_text()
    expected, found = contents(whole), contents(broken)
    assert sorted(found) == sorted(expected)
    assert {name for name in expected if found[name] != expected[name]} <= {"costs.jsonl"}
