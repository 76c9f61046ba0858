"""A run goes on from what it was begun with, even where the recipe's words stayed the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inward.config import load_recipe
from inward.errors import RunChangedError, UsageError
from inward.runs.directory import RunDir
from inward.runs.progress import Silent
from inward.stages.inputs import check_markers, draw_prompts, seed_model
from inward.stages.run import Run
from inward.thought import ThoughtFormat
from inward.training import memory
from tests.integration.test_kill import write_recipe
from tests.tiny import tiny_model, tiny_tokenizer


def begin(recipe: Path, out: Path, *overrides: str) -> None:
    run = Run(load_recipe(recipe, list(overrides)), RunDir(out), Silent())
    draw_prompts(run, seed_model(run))


def test_other_prompts_under_the_same_name_are_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    begin(recipe, tmp_path / "run")
    begin(recipe, tmp_path / "run")
    prompts = tmp_path / "prompts.jsonl"
    rows = prompts.read_text().splitlines()
    prompts.write_text("\n".join([json.dumps(json.loads(rows[0]) | {"prompt": "Something else."}), *rows[1:]]) + "\n")
    with pytest.raises(RunChangedError, match=r"prompts\.sources"):
        begin(recipe, tmp_path / "run")


def test_another_model_under_the_same_name_is_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    begin(recipe, tmp_path / "run")
    tiny_model(tmp_path / "seed", seed=5, spread=0.05)
    with pytest.raises(RunChangedError, match=r"model\.path"):
        begin(recipe, tmp_path / "run")


def test_more_iterations_keep_the_earlier_prompts(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    begin(recipe, tmp_path / "run", "prompts.per_iteration=3")
    first = json.loads((tmp_path / "run" / "inputs.json").read_text())
    begin(recipe, tmp_path / "run", "prompts.per_iteration=3", "iterations=2")
    second = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert second["iterations"][:1] == first["iterations"]
    assert len(second["iterations"]) == 2


def test_memory_is_reckoned_for_each_of_the_processes_before_anything_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []

    def check(*_: object, processes: int, sharded: bool, **__: object) -> None:
        asked.append((processes, sharded))

    monkeypatch.setattr(memory, "check_memory", check)
    recipe = write_recipe(tmp_path)
    begin(recipe, tmp_path / "run", "execution.shard=true", "execution.processes=1")
    begin(recipe, tmp_path / "run", "execution.processes=2")
    begin(recipe, tmp_path / "run", "execution.shard=true", "execution.processes=2")
    assert asked == [(1, False), (2, False), (2, True)]


def test_a_marker_that_the_tokenizer_loses_is_refused() -> None:
    lost = ThoughtFormat("mine", response_marker="<|im_start|>")
    with pytest.raises(UsageError, match="special token"):
        check_markers(tiny_tokenizer(), [lost])
    check_markers(tiny_tokenizer(), [ThoughtFormat("mine", response_marker="<R>")])


def test_a_run_of_an_earlier_version_is_told_from_one_of_another_model(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    begin(recipe, tmp_path / "run")
    inputs = tmp_path / "run" / "inputs.json"
    stored = json.loads(inputs.read_text())
    inputs.write_text(json.dumps(stored | {"seed_model": "0123456789abcdef"}))
    with pytest.raises(RunChangedError, match="written by an earlier version"):
        begin(recipe, tmp_path / "run")
