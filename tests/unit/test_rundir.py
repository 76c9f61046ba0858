"""Which recipe may have which folder: a mistake made before anything was stored costs nothing, a stored record binds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.cli.status import stages as status_rows
from inward.config import Recipe, parse_recipe
from inward.engines.transformers.engine import load_engine
from inward.errors import JudgeError, RunChangedError, UsageError
from inward.models.tokenizer import encode_chat, load_context
from inward.records import Output
from inward.runs.directory import RunDir
from inward.runs.ledger import read_costs
from inward.runs.opening import open_existing, prepare, stored_recipe
from inward.runs.progress import Silent
from inward.runs.shards import shard_name, shard_path, write_shard
from inward.stages import inputs, validation
from inward.stages.run import ArmIteration, Run
from inward.training.weights import load_model
from tests.build import output
from tests.tiny import tiny_model, tiny_tokenizer


def recipe(**changes: Any) -> Recipe:
    tree = {
        "iterations": 2,
        "model": {"path": "smollm2"},
        "prompts": {"sources": [{"kind": "tasks", "count": 8}], "per_iteration": 2, "validation": 2},
        "judge": {"kind": "verifiable"},
    }
    return parse_recipe(tree | changes)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.root.mkdir()
    (made.root / ".lock").touch()
    return made


def begin(run: RunDir, *iterations: int) -> None:
    for t in iterations:
        (run.iteration("thinking", t) / "outputs").mkdir(parents=True)


def test_a_run_that_stored_nothing_takes_a_mended_recipe(run: RunDir) -> None:
    assert prepare(run, recipe(seed=1), "")
    run.costs.touch()
    assert prepare(run, recipe(seed=2), "")
    assert stored_recipe(run).seed == 2
    assert json.loads(run.provenance.read_text())["seed"] == 2


def test_a_run_that_stored_something_does_not(run: RunDir) -> None:
    prepare(run, recipe(seed=1), "")
    begin(run, 0)
    with pytest.raises(RunChangedError, match="seed: 1 there, 2 now"):
        prepare(run, recipe(seed=2), "")
    assert not prepare(run, recipe(seed=1), "")


def test_limits_may_change_since_they_alter_nothing(run: RunDir) -> None:
    prepare(run, recipe(), "")
    begin(run, 0)
    assert not prepare(run, recipe(judge_limits={"max_errors": 0.9, "prompts": 50}), "")
    assert stored_recipe(run).judge_limits.max_errors == 0.9
    with pytest.raises(RunChangedError, match=r"judge\.strictness"):
        prepare(run, recipe(judge={"kind": "verifiable", "strictness": "loose"}), "")


def test_a_paid_for_record_binds_before_its_shard_is_there(run: RunDir) -> None:
    prepare(run, recipe(seed=1), "")
    run.costs.write_text("{}\n")
    with pytest.raises(RunChangedError):
        prepare(run, recipe(seed=2), "")


def test_iterations_may_grow_and_shrink_back_to_those_begun(run: RunDir) -> None:
    prepare(run, recipe(), "")
    begin(run, 0, 1, 2)
    for iterations in (9, 2, 3):  # 9 was too many for the prompts, say: the run must not be stuck with it
        prepare(run, recipe(iterations=iterations), "")
        assert stored_recipe(run).iterations == iterations
    with pytest.raises(RunChangedError, match="iterations"):
        prepare(run, recipe(iterations=1), "")


@pytest.mark.parametrize("name", [".tmp-recipe.toml", ".tmp-provenance.json", ".tmp-config.json"])
def test_a_kill_while_the_first_files_are_written_leaves_a_usable_folder(run: RunDir, name: str) -> None:
    (run.root / name).write_text("half")
    assert prepare(run, recipe(), "")
    assert not (run.root / name).exists()


def test_a_folder_whose_config_is_a_models_is_left_alone(run: RunDir) -> None:
    run.config.write_text('{"model_type": "llama"}')
    for attempt in (lambda: prepare(run, recipe(), ""), lambda: open_existing(run.root)):
        with pytest.raises(UsageError, match=r"config\.json is not a recipe"):
            attempt()
    assert run.config.read_text() == '{"model_type": "llama"}'


def test_status_knows_how_many_parts_there_are_once_a_stage_is_begun(run: RunDir) -> None:
    begin(run, 1)

    def row(stage: str) -> tuple[int, int | None]:
        return next((row["done"], row["total"]) for row in status_rows(run, recipe()) if row["stage"] == stage)

    assert row("outputs") == (0, None)
    write_shard(shard_path(run.iteration("thinking", 1) / "outputs", shard_name(1, 3, ["p"])), Output, [])
    assert row("outputs") == (1, 3)
    assert row("reference") == (0, None)
    assert row("training") == (0, recipe().training.epochs)


@pytest.mark.parametrize("t", [0, 1])
def test_a_checkpoint_that_lost_the_format_does_not_stop_the_run_but_a_seed_does(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, t: int
) -> None:
    broken = [output("p.0", response=None), output("p.1", response=None)]
    monkeypatch.setattr(validation, "draw_outputs", lambda *_, **__: broken)
    monkeypatch.setattr(validation, "judge_measured", lambda *_, **__: [])
    here = ArmIteration(Run(recipe(), run, Silent()), "thinking", t)
    if t == 0:
        with pytest.raises(JudgeError, match=r"thought\.scaffold"):
            validation.validate(here, run.root / "seed", [])
        return
    evaluation = validation.validate(here, run.root / "epoch_01", [])
    assert evaluation.score == 0.0
    assert evaluation.unresolved == 1.0
    assert read_costs(run.costs) == []


def test_a_template_that_refuses_the_turns_is_one_message() -> None:
    tokenizer = tiny_tokenizer(chat_template="{{ raise_exception('System role not supported') }}")
    with pytest.raises(UsageError, match=r"System role not supported.*thought\.turn"):
        encode_chat(tokenizer, [{"role": "system", "content": "think"}, {"role": "user", "content": "hello"}])


def test_prompts_leave_room_for_an_output_before_anything_is_sampled(tmp_path: Path, run: RunDir) -> None:
    seed = tiny_model(tmp_path / "seed")
    context = load_context(seed, tiny_tokenizer())
    wanted = recipe(sampling={"max_new_tokens": context - 10}, arms=["direct"])
    with pytest.raises(UsageError, match=r"more than 10, .*sampling\.max_new_tokens"):
        inputs.draw_prompts(Run(wanted, run, Silent()), seed)


def test_a_judge_that_is_not_there_is_found_before_anything_is_sampled(tmp_path: Path, run: RunDir) -> None:
    seed = tiny_model(tmp_path / "seed")
    wanted = recipe(judge={"kind": "reward_model", "path": str(tmp_path / "nowhere")}, sampling={"max_new_tokens": 16})
    with pytest.raises(UsageError, match=r"judge\.path .*nowhere"):
        inputs.draw_prompts(Run(wanted, run, Silent()), seed)


def test_damaged_weights_are_one_message(tmp_path: Path) -> None:
    seed = tiny_model(tmp_path / "seed")
    weights = seed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for load in (load_engine, lambda path: load_model(path, torch.float32)):
        with pytest.raises(UsageError, match="causal language model"):
            load(seed)


def test_a_templates_own_thinking_mode_is_left_off() -> None:
    own = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}{{ messages[0]['content'] }}"
    assert encode_chat(tiny_tokenizer(chat_template=own), [{"role": "user", "content": "x"}]) == (
        *tiny_tokenizer()("x", add_special_tokens=False).input_ids,
    )
