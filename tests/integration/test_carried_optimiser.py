"""The optimiser over iterations: what is stored at the end of one training is all that the next one needs to go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inward.config import TrainingSettings, parse_recipe
from inward.errors import RunChangedError, UsageError
from inward.training.batches import steps_from
from inward.training.examples import Example
from inward.training.job import Course, Job
from inward.training.memory import Budget
from inward.training.metrics import read_metrics
from inward.training.team import ALONE
from inward.training.train import _step, train
from inward.training.trainee import make_trainee
from tests.pairs import made_examples, stored_reference
from tests.tiny import tiny_model

SETTINGS = TrainingSettings(epochs=1, batch_pairs=3, learning_rate=2e-3, carry_optimiser=True)
FIRST, SECOND = made_examples(6), made_examples(6, seed=1)
States = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def seed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), hidden=16, spread=0.1)


@pytest.fixture(scope="module")
def bf16_model(seed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("bf16")
    tiny_model(folder, hidden=16, spread=0.1)
    AutoModelForCausalLM.from_pretrained(seed_model, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def iterate(
    models: list[Path],
    sets: list[list[Example]],
    out: Path,
    settings: TrainingSettings,
    *,
    anchor: Path | None = None,
    iterations: int | None = None,
) -> list[Path]:
    """Train on one set of pairs after the other as a run's iterations do; return the models, the seed first."""
    state = None
    for t, examples in enumerate(sets, start=1):
        reference = stored_reference(anchor or models[-1], examples, settings, dtype="float32")
        course = Course(iteration=t, iterations=iterations or len(sets), state=state) if settings.carry_optimiser else None
        epochs = train(
            models[-1], examples, reference, settings, out / f"{t}", seed=t, dtype="float32", course=course, only_last=True
        )
        assert [path.name for path in epochs] == [f"epoch_{settings.epochs:02d}"], "no checkpoint is stored for nothing"
        state = out / f"{t}" / "optimiser" / epochs[-1].name
        models = [*models, epochs[-1]]
    return models


def stored(state: Path) -> States:
    return {f"{file.stem}.{name}": tensor for file in state.iterdir() for name, tensor in load_file(file).items()}


def weights(model: Path) -> States:
    return load_file(model / "model.safetensors")


def assert_close(ours: States, theirs: States) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_as_many_iterations_on_the_same_pairs_are_as_many_epochs(seed_model: Path, tmp_path: Path, schedule: str) -> None:
    """A step takes all pairs, so that their order is no matter: three carried iterations are a training of three epochs."""
    settings = SETTINGS.model_copy(update={"batch_pairs": 6, "schedule": schedule, "warmup": 0.4})
    carried = iterate([seed_model], [FIRST] * 3, tmp_path / "carried", settings, anchor=seed_model)
    whole = settings.model_copy(update={"epochs": 3, "carry_optimiser": False})
    reference = stored_reference(seed_model, FIRST, whole, dtype="float32")
    epochs = train(seed_model, FIRST, reference, whole, tmp_path / "whole", seed=1, dtype="float32")
    for ours, theirs in zip(carried[1:], epochs, strict=True):
        assert_close(weights(ours), weights(theirs))
    rates = [step.lr for t in (1, 2, 3) for step in read_metrics(tmp_path / "carried" / f"{t}" / "metrics.jsonl")]
    assert rates == [step.lr for step in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    alone = iterate([seed_model], [FIRST] * 3, tmp_path / "alone", settings.model_copy(update={"carry_optimiser": False}))
    with pytest.raises(AssertionError):
        assert_close(weights(alone[-1]), weights(epochs[-1]))


def test_two_iterations_are_one_training_of_both_sets_of_batches(seed_model: Path, tmp_path: Path) -> None:
    """Steps of one trainee that is never stored come to the weights and moments of two trainings, of which one goes on."""
    models = iterate([seed_model], [FIRST, SECOND], tmp_path, SETTINGS)
    trainee = make_trainee(seed_model, SETTINGS, seed=1, dtype="float32")
    for t, examples in enumerate((FIRST, SECOND), start=1):
        job = Job(
            model_path=models[t - 1],
            examples=tuple(examples),
            held_out=(),
            reference={r.pair_id: r for r in stored_reference(models[t - 1], examples, SETTINGS, dtype="float32")},
            settings=SETTINGS,
            out=tmp_path / "never",
            seed=t,
            budget=Budget(SETTINGS.batch_tokens),
            team=ALONE,
            course=Course(iteration=t, iterations=2, state=None),
        )
        for step, epoch, pairs in steps_from(0, examples, SETTINGS, seed=t):
            _step(job, trainee, pairs, step, epoch)
    state = stored(tmp_path / "2" / "optimiser" / "epoch_01")
    assert_close(
        {f"masters.{name}": tensor for name, tensor in trainee.weights.masters().items()},
        {name: tensor for name, tensor in state.items() if name.startswith("masters.")},
    )
    moments = {
        f"moments.{key}.{name}": value
        for name, master in zip(trainee.weights.names, trainee.weights.master, strict=True)
        for key, value in trainee.optimiser.state[master].items()
    }
    assert_close(moments, {name: tensor for name, tensor in state.items() if name.startswith("moments.")})
    assert {float(value) for name, value in moments.items() if name.startswith("moments.step")} == {4.0}


def test_updates_too_small_for_the_stored_weights_add_up(bf16_model: Path, tmp_path: Path) -> None:
    """Eight short iterations at a rate below the last digit of most bf16 weights: only carried masters keep what they learn."""
    settings = SETTINGS.model_copy(update={"learning_rate": 6e-5, "schedule": "constant", "warmup": 0.0, "batch_pairs": 6})
    carried = iterate([bf16_model], [FIRST] * 8, tmp_path / "carried", settings, anchor=bf16_model)
    lost = settings.model_copy(update={"carry_optimiser": False})
    alone = iterate([bf16_model], [FIRST] * 8, tmp_path / "alone", lost, anchor=bf16_model)
    before = weights(bf16_model)
    state = stored(tmp_path / "carried" / "8" / "optimiser" / "epoch_01")
    masters = {name.removeprefix("masters."): tensor for name, tensor in state.items() if name.startswith("masters.")}

    def moved(after: States) -> float:
        return torch.cat([(after[name].float() - before[name].float()).abs().flatten() for name in masters]).mean().item()

    whole = moved(masters)
    assert moved(weights(carried[-1])) > 0.7 * whole, "rounding hides little of the sum"
    assert moved(weights(alone[-1])) < 0.5 * whole, "what is rounded away every time is lost"


def test_the_state_is_that_of_the_epoch_that_goes_on(seed_model: Path, tmp_path: Path) -> None:
    """Each epoch has its state beside it, and with one or the other the next training goes on from other moments."""
    settings = SETTINGS.model_copy(update={"epochs": 2})
    reference = stored_reference(seed_model, FIRST, settings, dtype="float32")
    course = Course(iteration=1, iterations=2, state=None)
    epochs = train(seed_model, FIRST, reference, settings, tmp_path / "1", seed=1, dtype="float32", course=course)
    states = [stored(tmp_path / "1" / "optimiser" / path.name) for path in epochs]
    for model, state, steps in zip(epochs, states, (2, 4), strict=True):
        assert_close(
            weights(model),
            {name.removeprefix("masters."): tensor for name, tensor in state.items() if name.startswith("masters.")},
        )
        assert {float(value) for name, value in state.items() if name.startswith("moments.step")} == {float(steps)}
    assert not (tmp_path / "1" / "state").exists()
    course = Course(iteration=2, iterations=2, state=tmp_path / "1" / "optimiser" / "epoch_01")
    reference = stored_reference(epochs[0], SECOND, settings, dtype="float32")
    train(epochs[0], SECOND, reference, settings, tmp_path / "2", seed=2, dtype="float32", course=course)
    last = stored(tmp_path / "2" / "optimiser" / "epoch_02")
    assert {float(value) for name, value in last.items() if name.startswith("moments.step")} == {6.0}
    wrong = Course(iteration=2, iterations=2, state=None)
    with pytest.raises(RunChangedError, match="course"):
        train(epochs[0], SECOND, reference, settings, tmp_path / "2", seed=2, dtype="float32", course=wrong)


def test_an_adapter_has_no_moments_to_carry() -> None:
    tree = {
        "model": {"path": "smollm2"},
        "prompts": {"sources": [{"kind": "tasks", "count": 8}]},
        "judge": {"kind": "verifiable"},
        "training": {"carry_optimiser": True, "lora": {}},
    }
    with pytest.raises(UsageError, match=r"training\.carry_optimiser does not go with training\.lora"):
        parse_recipe(tree)
