"""The whole loop through the command line, on tiny real models: every kind of judge, training and execution."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inward.cli.status import stages
from inward.records import Output, Pair, Prompt, Score, Verdict
from inward.runs.directory import RunDir
from inward.runs.opening import stored_recipe
from inward.runs.shards import read_stage
from inward.training.examples import ReferenceLogps
from tests.integration.test_kill import Forks, contents, write_recipe
from tests.tiny_reward import tiny_reward_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Forks]]:
    folder = tmp_path_factory.mktemp("loop")
    recipe = write_recipe(folder)
    forks = Forks(folder / "log.txt")
    yield recipe, forks
    forks.close()


def run(place: tuple[Path, Forks], out: Path, *overrides: str) -> RunDir:
    recipe, forks = place
    forks.log.write_text("")
    assert forks.run("run", str(recipe), *overrides, "--out", str(out)) == {"code": 0}, forks.log.read_text()
    return RunDir(out)


RECORDS = {
    "prompts": Prompt,
    "outputs": Output,
    "verdicts": Verdict,
    "scores": Score,
    "pairs": Pair,
    "reference": ReferenceLogps,
}


def records(root: Path) -> dict[str, Any]:
    """Return every file of a run as `contents` does, but the records of its stages: how these are cut is no matter."""
    found = {name: content for name, content in contents(root).items() if "/part-" not in name}
    folders = {path.parent for path in root.rglob("part-*.parquet")}
    found |= {str(folder.relative_to(root)): read_stage(folder, RECORDS[folder.name]) for folder in folders}
    return {name: content for name, content in found.items() if name not in ("config.json", "costs.jsonl")}


def test_how_work_is_spread_does_not_change_what_is_stored(place: tuple[Path, Forks], tmp_path: Path) -> None:
    """One process, processes of their own, two or three workers: the same records, figures and models."""
    here = records(run(place, tmp_path / "here", "arms=['thinking']").root)
    assert len(here) > 20
    for name, *overrides in (("apart", "isolate=true"), ("two", "workers=2"), ("three", "workers=3", "shard_prompts=4")):
        done = run(place, tmp_path / name, "arms=['thinking']", *(f"execution.{override}" for override in overrides))
        assert records(done.root) == here, name


def test_processes_share_a_training_and_another_number_goes_on(place: tuple[Path, Forks], tmp_path: Path) -> None:
    """Two processes measure in every step what one does, also with the weights cut over them; the run is then the same one,
    finished, to a single process that holds all."""
    arm = "arms=['thinking']"
    steps = []
    for out, *overrides in (("one",), ("two", "processes=2"), ("cut", "processes=2", "shard=true")):
        done = run(place, tmp_path / out, arm, *(f"execution.{override}" for override in overrides))
        lines = (done.iteration("thinking", 1) / "checkpoints" / "metrics.jsonl").read_text().splitlines()
        steps.append([json.loads(line) for line in lines])
    assert len(steps[0]) > 1
    for one, *others in zip(*steps, strict=True):
        for name in ("loss", "grad_norm", "chosen_logp", "rejected_logp", "margin"):
            assert [step[name] for step in others] == pytest.approx([one[name]] * 2, rel=1e-5, abs=1e-5), (one["step"], name)
    before = contents(done.root)
    after = contents(run(place, tmp_path / "cut", arm).root)
    assert {name for name in before if before[name] != after[name]} == {"config.json"}
    costs = [json.loads(line) for line in done.costs.read_text().splitlines()]
    assert sum(cost["stage"] == "training" for cost in costs) == 1


def test_two_iterations_go_on_from_each_other(place: tuple[Path, Forks], tmp_path: Path) -> None:
    sizes = ("prompts.per_iteration=4", "prompts.validation=4")
    done = run(place, tmp_path / "run", "iterations=2", *sizes)
    summary = json.loads(done.summary.read_text())
    assert [row["iteration"] for row in summary["arms"]["thinking"]] == [0, 1, 2]
    assert [row["iteration"] for row in summary["thinking_minus_direct"]] == [0, 1, 2]
    prompts = [{o.prompt_id for o in read_stage(done.iteration("thinking", t) / "outputs", Output)} for t in (1, 2)]
    assert not prompts[0] & prompts[1]
    both = [{o.prompt_id for o in read_stage(done.iteration("direct", t) / "outputs", Output)} for t in (1, 2)]
    assert both == prompts, "both arms get the same prompts"
    for row in stages(done, stored_recipe(done)):
        assert row["done"] == row["total"] > 0, row
    models = [(done.iteration(arm, t) / "model" / "model.safetensors").read_bytes() for arm in summary["arms"] for t in (1, 2)]
    assert len(set(models)) == 4


def test_lora_and_irpo(place: tuple[Path, Forks], tmp_path: Path) -> None:
    settings = ("training.objective=irpo", "training.lora={ rank = 2 }", "arms=['direct']")
    done = run(place, tmp_path / "run", *settings)
    folder = done.iteration("direct", 1)
    assert (folder / "checkpoints" / "epoch_01" / "adapter_config.json").exists(), "adapters are kept"
    assert (folder / "model" / "model.safetensors").exists(), "and merged into the next model"
    moved = tmp_path / "moved"
    done.root.rename(moved)
    (moved / "direct" / "iter_001" / "evaluation.json").unlink()
    for shard in (moved / "direct" / "iter_001" / "validation").rglob("*.parquet"):
        shard.unlink()
    run(place, moved, *settings)


def test_simpo_with_weighted_parts_and_an_early_stop(place: tuple[Path, Forks], tmp_path: Path) -> None:
    settings = ("training.objective=simpo", "training.thought_weight=0.5", "training.epochs=3", "training.early_stop={}")
    done = run(place, tmp_path / "run", *settings, "training.learning_rate=0.05")
    for arm in ("thinking", "direct"):
        folder = done.iteration(arm, 1)
        assert not (folder / "reference").exists(), "SimPO has no reference"
        epochs = (folder / "checkpoints" / "held_out.jsonl").read_text().splitlines()
        assert 2 <= len(epochs) <= 3
        assert len(json.loads((folder / "evaluation.json").read_text())["evaluations"]) == len(epochs)


def test_a_reward_model_judges_and_no_malformed_or_unscored_output_is_chosen(place: tuple[Path, Forks], tmp_path: Path) -> None:
    reward = tiny_reward_model(tmp_path / "reward", names=("help", "length"))
    weights = "objectives = { help = 1.0, length = -0.2 }"
    judge = f'judge={{ kind = "reward_model", path = "{reward}", dtype = "float32", {weights} }}'
    done = run(place, tmp_path / "run", judge)
    for arm in ("thinking", "direct"):
        folder = done.iteration(arm, 1)
        outputs = {output.id: output for output in read_stage(folder / "outputs", Output)}
        scores = {score.output_id: score for score in read_stage(folder / "scores", Score)}
        pairs = read_stage(folder / "pairs", Pair)
        assert len(outputs) == len(scores) == 24
        assert pairs
        for pair in pairs:
            assert outputs[pair.chosen_id].response is not None
            assert scores[pair.chosen_id].value == pair.chosen_score
            assert outputs[pair.chosen_id].prompt_id == outputs[pair.rejected_id].prompt_id == pair.prompt_id
            if pair.kind == "scored":
                assert scores[pair.chosen_id].value == max(
                    score.value for score in scores.values() if score.prompt_id == pair.prompt_id and score.value is not None
                )


def test_a_seed_that_never_keeps_the_format_is_told_to_scaffold(place: tuple[Path, Forks], tmp_path: Path) -> None:
    recipe, forks = place
    forks.log.write_text("")
    text = recipe.read_text().replace("scaffold = { budget = 6 }", "")
    bare = tmp_path / "bare.toml"
    bare.write_text(text)
    assert forks.run("run", str(bare), "--out", str(tmp_path / "run")) == {"code": 1}
    assert "thought.scaffold" in forks.log.read_text()
