"""What a run takes at most, stage by stage, and the seconds that its own ledger lets one project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inward import hardware
from inward.cli.recipes import shipped
from inward.config import EndpointEngineSettings, Recipe, VllmSettings, load_recipe, parse_recipe
from inward.records import Prompt
from inward.runs.ledger import Cost
from inward.stages.footprint import disk_forecast, require_disk, sampling_memory
from inward.stages.forecast import Dealt, IterationForecast, StageForecast, forecast, kind_of, projected
from tests.shapes import LLAMA_8B, shape_only
from tests.unit.test_recipes import changed

UNKNOWN = Dealt(iterations=None, validation=None, lengths={}, baseline_answers=1)


def small(**keys: Any) -> Recipe:
    sizes = {"iterations": 2, "prompts__per_iteration": 10, "prompts__validation": 4, "sampling__max_new_tokens": 100}
    return parse_recipe(changed(**(sizes | {"training__epochs": 3, "training__batch_pairs": 4} | keys)))


def stage(iterations: list[IterationForecast], arm: str, t: int, kind: str) -> StageForecast:
    (one,) = [one for one in iterations if (one.arm, one.iteration) == (arm, t)]
    (found,) = [stage for stage in one.stages if stage.stage == kind]
    return found


def test_the_papers_setting_takes_what_the_paper_says() -> None:
    iterations = forecast(load_recipe(shipped()["paper"]), UNKNOWN)
    assert [(one.arm, one.iteration) for one in iterations][:4] == [
        ("thinking", 0), ("direct", 0), ("thinking", 1), ("direct", 1)
    ]  # fmt: skip
    assert len(iterations) == 2 * 5
    outputs = stage(iterations, "thinking", 1, "outputs")
    assert (outputs.count, outputs.written) == (40_000, 40_000 * 2048)
    assert stage(iterations, "thinking", 1, "verdicts").count == 40_000
    assert stage(iterations, "thinking", 1, "training").count == 10 * 313  # 16 pairs a step, of at most one pair a prompt
    assert stage(iterations, "thinking", 1, "validation").count == 10 * 1500
    assert stage(iterations, "thinking", 0, "validation").count == 1500
    pairwise = forecast(load_recipe(shipped()["paper-pairwise"]), UNKNOWN)
    assert stage(pairwise, "direct", 4, "verdicts").count == 5000 * 8 * 7
    assert stage(pairwise, "direct", 4, "judging of validation").count == 10 * 1500 * 2


def test_what_is_read_is_counted_by_the_tokens_of_the_prompts() -> None:
    prompts = [Prompt(id=str(n), text=str(n), source="test") for n in range(24)]
    lengths = {"thinking": {str(n): 30 for n in range(24)}, "direct": {str(n): n for n in range(24)}}
    dealt = Dealt(iterations=[prompts[4:14], prompts[14:]], validation=prompts[:4], lengths=lengths, baseline_answers=1)  # type: ignore[arg-type]
    iterations = forecast(small(validation__tries=3), dealt)
    assert stage(iterations, "thinking", 1, "outputs").read == 300
    assert stage(iterations, "direct", 2, "outputs").read == sum(range(14, 24))
    assert stage(iterations, "direct", 0, "validation").read == 3 * (0 + 1 + 2 + 3)
    assert stage(iterations, "thinking", 1, "training").read == 3 * (300 + 2 * 10 * 100)
    assert stage(forecast(small(), UNKNOWN), "thinking", 1, "outputs").read == 10 * 2048  # as long as a prompt may be


def test_an_objective_without_a_reference_has_no_stage_for_it() -> None:
    kinds = [found.stage for found in forecast(small(training__objective="simpo"), UNKNOWN)[-1].stages]
    assert kinds == ["outputs", "verdicts", "training", "validation", "judging of validation"]


def cost(arm: str, t: int, name: str, part: int, seconds: float, items: int) -> Cost:
    return Cost(
        arm=arm, iteration=t, stage=name, part=str(part), seconds=seconds, device_seconds=0.0, items=items,
        tokens=0, judge_calls=0, peak_memory=0,
    )  # fmt: skip


LEDGER = [
    cost("thinking", 0, "validation of seed", 0, 8.0, 4),
    cost("thinking", 0, "judging, validation of seed", 0, 2.0, 4),
    cost("thinking", 1, "outputs", 0, 10.0, 5),
    cost("thinking", 1, "outputs", 1, 30.0, 5),
    cost("thinking", 1, "verdicts", 0, 8.0, 80),
    cost("thinking", 1, "reference", 0, 4.0, 8),
    cost("thinking", 1, "training", 0, 24.0, 8),
    cost("thinking", 1, "benchmark of epoch_01", 0, 1e6, 1),
]


def test_seconds_come_from_what_is_done_and_from_nothing_else() -> None:
    iterations = projected(forecast(small(), UNKNOWN, [("thinking", 0)]), LEDGER, {"outputs": 2, "validation": 2})
    assert stage(iterations, "thinking", 2, "outputs").seconds == pytest.approx(40.0 / 2)  # 4 s a prompt, two at once
    assert stage(iterations, "thinking", 2, "verdicts").seconds == pytest.approx(8.0)
    assert stage(iterations, "thinking", 2, "reference").seconds == pytest.approx(4.0)  # eight pairs, as there were
    assert stage(iterations, "thinking", 2, "training").seconds == pytest.approx(24.0)
    assert stage(iterations, "thinking", 2, "validation").seconds == pytest.approx(3 * 8.0 / 2)  # three epochs
    assert stage(iterations, "direct", 2, "outputs").seconds is None  # nothing of this arm is done
    assert [one.finished for one in iterations][:3] == [True, False, False]


def test_every_stage_of_a_run_is_known_by_its_name_in_the_ledger() -> None:
    assert kind_of("validation of epoch_03") == "validation"
    assert kind_of("judging, validation of epoch_03") == "judging of validation"
    assert kind_of("benchmark of seed") is None
    assert [kind_of(name) for name in ("outputs", "verdicts", "reference", "training")] == [
        "outputs", "verdicts", "reference", "training"
    ]  # fmt: skip


def test_the_disk_holds_every_model_and_what_one_training_needs(tmp_path: Path) -> None:
    model = shape_only(tmp_path / "8b", LLAMA_8B)
    recipe = small(model__path=str(model), model__dtype="bfloat16")
    numbers = 8_030_261_248
    disk = disk_forecast(recipe, model, forecast(recipe, UNKNOWN), tmp_path / "runs" / "not yet")
    assert disk is not None
    assert disk.models == 2 * 2 * 2 * numbers  # arms, iterations, bf16
    assert disk.checkpoints == 3 * 2 * numbers
    assert disk.state == 2 * 12 * numbers  # masters and both moments, while the next state is written beside the last
    with pytest.raises(Exception, match=r"training\.epochs.*training\.lora"):
        require_disk(disk, tmp_path)
    later = disk_forecast(recipe, model, forecast(recipe, UNKNOWN, [("thinking", 0), ("thinking", 1)]), tmp_path)
    assert later is not None
    assert later.models == 3 * 2 * numbers
    adapter = small(model__path=str(model), model__dtype="bfloat16", training__lora={"rank": 16})
    light = disk_forecast(adapter, model, forecast(adapter, UNKNOWN), tmp_path)
    assert light is not None
    assert light.models == disk.models  # what goes on is merged
    assert light.checkpoints + light.state < 2 * 10**9


def test_vllm_has_its_part_of_each_gpu_and_servers_have_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shape_only(tmp_path / "8b", LLAMA_8B)
    recipe = small(model__path=str(model), model__dtype="bfloat16")
    monkeypatch.setattr(hardware, "total_memory", lambda device: 20 * 2**30)

    def memory(engine: str, **tables: Any) -> Any:
        sampling = recipe.sampling.model_copy(update={"engine": engine} | tables)
        return sampling_memory(recipe.model_copy(update={"sampling": sampling}), model, 100, 1)

    alone = memory("vllm", vllm=VllmSettings(memory=0.8))
    assert (alone.weights, alone.there, alone.total) == (2 * 8_030_261_248, 16 * 2**30, 16 * 2**30)
    assert memory("vllm", vllm=VllmSettings(memory=0.8, tensor_parallel=4)).weights == 8_030_261_248 // 2
    with pytest.raises(Exception, match=r"has 10\.0"):
        memory("vllm", vllm=VllmSettings(memory=0.5))
    assert memory("endpoint", endpoint=EndpointEngineSettings(servers=("http://localhost:1/v1",))) is None
    plain = memory("transformers")
    assert (plain.there, plain.rest) == (20 * 2**30, 128 * 200 * 131_072)


def test_iterations_that_are_not_validated_draw_nothing_for_it_and_few_models_stay(tmp_path: Path) -> None:
    model = shape_only(tmp_path / "8b", LLAMA_8B)
    keys: dict[str, Any] = {"iterations": 8, "model__path": str(model), "model__dtype": "bfloat16"}
    recipe = small(**keys, validation__every=3, execution__keep_models=1)
    iterations = forecast(recipe, UNKNOWN)
    validated = [one.iteration for one in iterations if one.arm == "direct" and one.stages[-1].stage == "judging of validation"]
    assert validated == [0, 3, 6, 8]
    disk, all_kept = (
        disk_forecast(other, model, iterations, tmp_path) for other in (recipe, small(**keys, validation__every=3))
    )
    assert disk is not None
    assert all_kept is not None
    assert (disk.models, all_kept.models) == (2 * 3 * 2 * 8_030_261_248, 2 * 8 * 2 * 8_030_261_248)
    carried = disk_forecast(small(**keys, training__carry_optimiser=True), model, iterations, tmp_path)
    assert carried is not None
    assert carried.state == 3 * all_kept.state  # beside the two of a training: the last iteration's, and one an epoch
