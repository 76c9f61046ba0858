"""`inward run RECIPE --check`: everything that stands in the way is said at once, and nothing is begun.

The shipped recipes are checked here on a machine that has none of what they ask for: 2 cores, 12 GiB, no GPU, a full disk. The
models are folders of the right shape without weights, so that whatever loaded weights would fail.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from inward import hardware
from inward.cli.main import main
from inward.cli.recipes import shipped
from inward.config import load_recipe
from inward.errors import UsageError
from inward.runs.directory import RunDir
from inward.runs.opening import locked, prepare
from inward.runs.progress import Silent
from inward.stages import check as check_stage
from inward.stages.check import Checked, check
from inward.stages.inputs import draw_prompts, seed_model
from inward.stages.run import Run
from tests.integration.judge_server import judge_server
from tests.integration.test_kill import write_recipe
from tests.shapes import LLAMA_8B, shape_only
from tests.tiny import tiny_model

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, 12 GiB of memory, 10 GiB of disk, and no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(check_stage, "processors", lambda: 2)
    monkeypatch.setattr(hardware, "total_memory", lambda device: 12 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - 10 * 2**30, 10 * 2**30))


def checked(recipe: Path, out: Path, *overrides: str) -> Checked:
    return check(Run(load_recipe(recipe, list(overrides)), RunDir(out), Silent()))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["inward", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def problems(found: Checked, folder: Path) -> list[str]:
    """Return the problems with what lies in `folder` named by its own name, and numbers of GiB left out."""
    return [re.sub(r"\d+\.\d", "N", re.sub(rf"'?{folder}/([\w-]+)'?", r"\1", str(problem))) for problem in found.problems]


TRAINING = "training 8b would take about N GiB"
SAMPLING = "sampling with model.path 8b would take at least N GiB"
JUDGING = "judging with judge.path judge would take at least N GiB"
VLLM = "vllm is not installed"
DISK = "run is on a disk with N GiB free, and the run would come to hold up to N: "
MISSING: dict[str, list[str]] = {
    "demo": [],
    "smollm2-verifiable": [],
    "semi-online": [],
    "paper": [TRAINING, SAMPLING, JUDGING, DISK],
    "paper-pairwise": [TRAINING, "the endpoint http://localhost:1/v1 cannot be reached", SAMPLING, DISK],
    "one-gpu-lora": [VLLM, SAMPLING, JUDGING, DISK],
    "cluster": ["no Ray cluster can be joined at execution.ray = ", VLLM, SAMPLING, JUDGING, DISK],
    "many-gpus": [
        "execution.workers = 8 is made for as many GPUs, and this machine has none and 2 processor cores",
        "execution.processes = 8 is made for as many GPUs, and this machine has none and 2 processor cores",
        TRAINING,
        VLLM,
        SAMPLING,
        JUDGING,
        DISK,
    ],
}
"""What each shipped recipe lacks on the bare machine, by how the problems begin."""


def test_every_shipped_recipe_is_checked_here() -> None:
    assert MISSING.keys() == shipped().keys()


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize("name", sorted(MISSING))
def test_a_shipped_recipe_says_what_the_machine_lacks_for_it(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(shipped()[name])
    small = recipe.model.path == "smollm2"
    model = tiny_model(tmp_path / "tiny") if small else shape_only(tmp_path / "8b", LLAMA_8B)
    overrides = [f"model.path={model}", "model.dtype=bfloat16", "prompts.per_iteration=6", "prompts.validation=4"]
    overrides += ["prompts.sources=[{ kind = 'tasks', count = 32 }]", "prompts.max_tokens=2048"]
    if recipe.judge.kind == "reward_model":
        judge = LLAMA_8B | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
        overrides += [f"judge.path={shape_only(tmp_path / 'judge', judge)}", "judge.dtype=bfloat16"]
    if recipe.judge.kind == "pairwise":
        overrides += ["judge.endpoint.base_url=http://localhost:1/v1"]
    if recipe.execution.ray is not None:
        overrides += ["execution.ray=127.0.0.1:1"]
    found = checked(shipped()[name], tmp_path / "run", *overrides)
    told = problems(found, tmp_path)
    assert len(told) == len(MISSING[name]), told
    for problem, begins in zip(told, MISSING[name], strict=True):
        assert problem.startswith(begins), told
    assert found.state == "new"
    assert not (tmp_path / "run").exists()
    if recipe.execution.ray is None:  # without an answer nobody knows how many processes share a step
        assert {one.stage for one in found.memory} >= ({"sampling", "training"} if small else {"training"})
    assert len(found.iterations) == 2 * (recipe.iterations + 1)


@pytest.mark.usefixtures("bare_machine")
def test_a_model_that_cannot_be_fetched_is_said_and_the_rest_is_checked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(name: str, **_: Any) -> str:
        raise OSError(f"no way to {name}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nowhere)
    overrides = ["prompts.sources=[{ kind = 'tasks', count = 32 }]", "prompts.per_iteration=6", "prompts.validation=4"]
    found = checked(shipped()["paper"], tmp_path / "run", *overrides)
    assert len(found.problems) == 2
    assert "no way to meta-llama/Meta-Llama-3-8B-Instruct" in str(found.problems[0])
    assert "no way to Skywork/Skywork-Reward-Llama-3.1-8B-v0.2" in str(found.problems[1])
    assert found.iterations[2].stages[0].written == 6 * 8 * 2048  # the recipe alone tells so much
    assert found.disk is None


def test_weights_are_asked_for_by_the_run_and_not_by_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shape_only(tmp_path / "snapshot", LLAMA_8B)
    asked: list[list[str]] = []

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    recipe = write_recipe(tmp_path)
    checked(recipe, tmp_path / "run", "model.path=owner/model")
    assert asked
    assert not any("*.safetensors" in patterns for patterns in asked)
    seed_model(Run(load_recipe(recipe, ["model.path=owner/model"]), RunDir(tmp_path / "run"), Silent()))
    assert "*.safetensors" in asked[-1]


def test_all_mistakes_come_together_and_the_run_says_the_same(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    wrong = [
        f"model.path={tiny_model(tmp_path / 'mute', chat_template=None)}",
        "prompts.per_iteration=60",
        "judge.kind='python'",
        "judge.function='nowhere.py:score'",
        "training.trackers=['mlflow']",
    ]
    found = [str(problem) for problem in checked(recipe, tmp_path / "run", *wrong).problems]
    for said in ("has no chat template", "52 prompts are missing", "nowhere.py cannot be read", "inward[mlflow]"):
        assert any(said in problem for problem in found), found
    assert len(found) == 4
    run = Run(load_recipe(recipe, wrong), RunDir(tmp_path / "run"), Silent())
    with pytest.raises(UsageError, match="4 problems stand in the way") as caught:
        draw_prompts(run, seed_model(run))
    assert all(problem in str(caught.value) for problem in found)


def test_the_command_prints_what_it_will_take_and_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    out = tmp_path / "runs" / "mine"
    assert call(monkeypatch, "run", recipe, "--out", out, "--check") == 0
    told = capsys.readouterr()
    assert re.search(r"thinking +1 +outputs +24 outputs +- +[\d,]+ +576 ", told.out)
    assert "Time left: not known" in told.out
    assert "Nothing stands in the way" in told.err
    assert not out.parent.exists()
    assert call(monkeypatch, "run", recipe, "--out", out, "--check", "--json", "prompts.validation=60") == 2
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert "54 prompts are missing" in document["problems"][0]
    assert "error: 54 prompts are missing" in told.err
    assert document["state"] == "new"
    assert document["iterations"][2]["stages"][0]["count"] == 24
    assert document["seconds_left"] is None


def test_a_run_directory_is_told_apart_by_what_may_become_of_it(tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    settings = load_recipe(recipe)
    run = Run(settings, RunDir(out), Silent())
    with locked(run.dir, Silent()):
        prepare(run.dir, settings, recipe.read_text())
        assert any("another process is working on" in str(problem) for problem in checked(recipe, out).problems)
    assert checked(recipe, out).state == "new"  # nothing is stored yet
    draw_prompts(run, seed_model(run))
    begun = checked(recipe, out)
    assert (begun.state, begun.problems) == ("begun", ())
    for arm in settings.arms:
        for t in (0, 1):
            folder = run.dir.iteration(arm, t)
            folder.mkdir(parents=True)
            (folder / "evaluation.json").write_text("{}")
    assert checked(recipe, out).state == "finished"
    assert all(one.finished for one in checked(recipe, out).iterations)
    assert checked(recipe, out, "iterations=2", "prompts.per_iteration=6", "prompts.validation=4").state == "begun"
    refused = checked(recipe, out, "training.beta=0.5")
    assert refused.state == "not to be used"
    assert "training.beta: 0.1 there, 0.5 now" in str(refused.problems[0])
    tiny_model(tmp_path / "seed", seed=5)
    for arm in settings.arms:
        (run.dir.iteration(arm, 1) / "evaluation.json").unlink()
    assert any("holds another model" in str(problem) for problem in checked(recipe, out).problems)


def test_a_judge_at_an_endpoint_is_asked_for_its_models_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    recipe = write_recipe(tmp_path)
    with judge_server() as server:
        judge = ["judge.kind='pairwise'", f"judge.endpoint.base_url='{server.url}'", "judge.endpoint.model='m'"]
        found = checked(recipe, tmp_path / "run", *judge)
        assert found.problems == ()
        assert any("does not list its models" in note for note in found.notes)
        assert server.asked == []
        found = checked(recipe, tmp_path / "run", *judge, "judge.endpoint.key_env='JUDGE_KEY'")
        assert [str(problem).count("JUDGE_KEY") for problem in found.problems] == [1]
    found = checked(recipe, tmp_path / "run", *judge)
    assert [str(problem).startswith("the endpoint http") for problem in found.problems] == [True]


@pytest.mark.slow
def test_the_rates_of_a_finished_iteration_tell_the_time_that_another_one_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    smaller = ["prompts.per_iteration=4"]
    assert call(monkeypatch, "run", recipe, "--out", out, *smaller) == 0
    assert call(monkeypatch, "run", recipe, "--out", out, *smaller, "--check", "--json") == 0
    captured = capsys.readouterr().out
    assert json.loads(captured[captured.index("{") :])["seconds_left"] == 0
    assert call(monkeypatch, "run", recipe, "--out", out, *smaller, "iterations=2", "--check", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["state"] == "begun"
    ledger = [json.loads(line) for line in (out / "costs.jsonl").read_text().splitlines()]
    spent = sum(row["seconds"] for row in ledger if row["iteration"] == 1)
    assert document["seconds_left"] == pytest.approx(spent, rel=0.5)  # the same once more; validation at the mean of all models
