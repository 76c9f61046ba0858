"""What training can do beside the plain step: stop early, recompute layers, keep 8-bit moments, do without a reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.config import EarlyStopSettings, LoraSettings, TrainingSettings
from inward.errors import MissingExtraError, TrainingError
from inward.training.batches import collate
from inward.training.early_stop import hold_out, read_held_out, stops
from inward.training.examples import Example
from inward.training.logps import sequence_logps
from inward.training.metrics import StepMetrics, read_metrics
from inward.training.objective import losses, pair_sums
from inward.training.reference import align_reference
from inward.training.trackers import require_packages
from inward.training.train import train
from inward.training.trainee import make_trainee
from inward.training.weights import load_model
from tests.pairs import made_examples, stored_reference
from tests.tiny import tiny_model

EXAMPLES = made_examples(10)
PLAIN = TrainingSettings(epochs=3, batch_pairs=4, learning_rate=3e-3, warmup=0.0, schedule="constant", save_steps=2)
STOPPING = PLAIN.model_copy(update={"epochs": 8, "learning_rate": 3e-2, "early_stop": EarlyStopSettings(share=0.3)})
EIGHT_BIT = PLAIN.model_copy(update={"optimiser": "adamw_8bit", "epochs": 2})
LORA = LoraSettings(rank=4, dropout=0.3)

# peft reads an attribute of transformers that is to be renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def seed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), hidden=16, spread=0.1)


def trained(
    model: Path, out: Path, settings: TrainingSettings, *, examples: list[Example] = EXAMPLES, kill_at: int | None = None
) -> list[Path]:
    """Train; with `kill_at`, stop dead right after that step."""
    reference = stored_reference(model, examples, settings, dtype="float32") if settings.needs_reference else []

    def on_step(step: StepMetrics) -> None:
        if step.step == kill_at:
            raise Killed

    return train(model, examples, reference, settings, out, seed=0, dtype="float32", on_step=on_step)


def contents(out: Path) -> dict[str, Any]:
    """Return everything stored but times."""
    found: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    return found | {
        "metrics": [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s", "mfu")} for line in lines]
    }


def test_pairs_are_held_out_by_id_and_seed_whatever_their_order() -> None:
    training, held_out = hold_out(EXAMPLES, STOPPING, seed=1)
    assert (len(training), len(held_out)) == (7, 3)
    assert sorted(e.pair_id for e in training + held_out) == [e.pair_id for e in EXAMPLES]
    again = hold_out(EXAMPLES[::-1], STOPPING, seed=1)
    assert {e.pair_id for e in again[1]} == {e.pair_id for e in held_out}
    assert any({e.pair_id for e in hold_out(EXAMPLES, STOPPING, seed=n)[1]} != {e.pair_id for e in held_out} for n in range(5))
    assert hold_out(EXAMPLES, PLAIN, seed=1) == (EXAMPLES, [])
    few = STOPPING.model_copy(update={"early_stop": EarlyStopSettings(share=0.99)})
    assert [len(part) for part in hold_out(EXAMPLES[:2], few, seed=0)] == [1, 1]
    with pytest.raises(TrainingError, match=r"training\.early_stop .* only 1"):
        hold_out(EXAMPLES[:1], STOPPING, seed=0)


@pytest.mark.parametrize(
    ("losses", "patience", "stop"),
    [
        ([], 1, False),
        ([0.7], 1, False),
        ([0.7, 0.6], 1, False),
        ([0.7, 0.6, 0.6], 1, True),
        ([0.7, 0.8], 2, False),
        ([0.7, 0.8, 0.75], 2, True),
        ([0.7, 0.8, 0.69], 2, False),
        ([0.7, float("nan")], 1, True),
        ([float("inf"), 0.7], 1, False),
    ],
)
def test_the_lowest_loss_may_be_patience_epochs_old(losses: list[float], patience: int, stop: bool) -> None:
    assert stops(losses, EarlyStopSettings(patience=patience)) is stop


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_training_stops_when_held_out_pairs_get_no_better_and_a_kill_changes_nothing(
    seed_model: Path, tmp_path: Path, lora: LoraSettings | None
) -> None:
    settings = STOPPING.model_copy(update={"lora": lora})
    epochs = trained(seed_model, tmp_path / "whole", settings)
    rows = read_held_out(tmp_path / "whole")
    assert 2 <= len(epochs) == len(rows) < settings.epochs
    assert [row.epoch for row in rows] == list(range(1, len(rows) + 1))
    assert stops([row.loss for row in rows], EarlyStopSettings())
    assert not stops([row.loss for row in rows][:-1], EarlyStopSettings())
    steps = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert len(steps) == 2 * len(rows)  # seven pairs, four a step
    assert steps[0].loss == pytest.approx(0.693147, abs=1e-6)  # the reference came in training's own micro-batches
    for kill_at in (1, 3, len(steps)):
        out = tmp_path / f"killed-{kill_at}"
        with pytest.raises(Killed):
            trained(seed_model, out, settings, kill_at=kill_at)
        if kill_at == len(steps):  # a kill after the state was stored and before the epoch's line was
            (out / "held_out.jsonl").write_text("".join((out / "held_out.jsonl").read_text().splitlines(True)[:-1]))
        assert [path.name for path in trained(seed_model, out, settings)] == [path.name for path in epochs]
        assert contents(out) == contents(tmp_path / "whole")
    assert trained(seed_model, tmp_path / "whole", settings) == epochs  # complete: returned at once


def test_the_held_out_figures_are_those_of_the_checkpoint(seed_model: Path, tmp_path: Path) -> None:
    """Loaded from disk and measured on their own, the held-out pairs have the stored loss; dropout plays no part in it."""
    from peft import PeftModel

    settings = STOPPING.model_copy(update={"epochs": 2, "lora": LORA})
    epochs = trained(seed_model, tmp_path, settings)
    _, held_out = hold_out(EXAMPLES, settings, seed=0)
    batch = collate(held_out, torch.device("cpu"))
    reference = {r.pair_id: r for r in stored_reference(seed_model, EXAMPLES, settings, dtype="float32")}
    reference_R = align_reference(reference, batch.pair_ids, torch.device("cpu"))
    model = PeftModel.from_pretrained(load_model(seed_model, torch.float32), epochs[0]).eval().get_base_model()
    with torch.no_grad():
        sums = pair_sums(held_out, sequence_logps(model, batch), reference_R, batch.counts_R)
        loss_B, columns = losses(settings, sums)
    row = read_held_out(tmp_path)[0]
    assert row.loss == pytest.approx(loss_B.mean().item(), rel=1e-5)
    assert row.margin == pytest.approx((columns["chosen_reward"] - columns["rejected_reward"]).mean().item(), rel=1e-4)


def test_simpo_trains_without_a_reference(seed_model: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(objective="simpo", epochs=6, batch_pairs=5, learning_rate=1e-2, warmup=0.0, schedule="constant")
    trained(seed_model, tmp_path, settings)
    steps = read_metrics(tmp_path / "metrics.jsonl")
    assert steps[-1].loss < steps[0].loss
    assert steps[-1].margin > steps[0].margin
    assert steps[0].kl_on_pairs is None


def test_the_policy_moves_away_from_the_reference(seed_model: Path, tmp_path: Path) -> None:
    trained(seed_model, tmp_path, PLAIN)
    first, *_, last = read_metrics(tmp_path / "metrics.jsonl")
    assert first.kl_on_pairs == 0.0
    assert last.kl_on_pairs != 0.0
    assert last.tokens_per_s == pytest.approx(last.tokens / last.seconds)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_recomputed_layers_give_the_same_gradients(seed_model: Path, lora: LoraSettings | None) -> None:
    def gradients(recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
        settings = PLAIN.model_copy(update={"gradient_checkpointing": recompute, "lora": lora})
        trainee = make_trainee(seed_model, settings, seed=0, dtype="float32")
        runs = 0

        def count(*_: Any) -> None:
            nonlocal runs
            runs += 1

        trainee.model.base_model.layers[0].mlp.register_forward_pre_hook(count)
        torch.manual_seed(3)  # LoRA's dropout draws the same again when a layer is recomputed
        sequence_logps(trainee.model, collate(EXAMPLES, torch.device("cpu"))).sum().backward()
        found = zip(trainee.weights.names, trainee.weights.working, strict=True)
        return {name: weight.grad for name, weight in found if weight.grad is not None}, runs

    kept, once = gradients(recompute=False)
    recomputed, twice = gradients(recompute=True)
    assert (once, twice) == (1, 2)
    assert kept.keys() == recomputed.keys()
    assert any(bool(gradient.any()) for gradient in kept.values())
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-6, atol=1e-7)


def test_recomputing_switches_on_no_dropout_of_the_layers_own(tmp_path: Path) -> None:
    """OPT's layers drop by themselves in training mode, which recomputing asks for."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
        word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5, layerdrop=0.5, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        OPTForCausalLM(config).save_pretrained(tmp_path)
    tokens = torch.arange(3, 23).unsqueeze(0)
    plain, recomputed = (
        make_trainee(tmp_path, PLAIN.model_copy(update={"gradient_checkpointing": on}), seed=0, dtype="float32").model
        for on in (False, True)
    )
    torch.testing.assert_close(recomputed.base_model(tokens)[0], plain.base_model(tokens)[0])


@pytest.mark.usefixtures("no_bitsandbytes")
def test_eight_bit_moments_need_their_package(seed_model: Path) -> None:
    for check in (lambda: require_packages(EIGHT_BIT), lambda: make_trainee(seed_model, EIGHT_BIT, seed=0, dtype="auto")):
        with pytest.raises(MissingExtraError, match=r"pip install 'inward\[bitsandbytes\]'"):
            check()


def test_eight_bit_moments_train_alike_and_resume_exactly(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="the bitsandbytes extra is not installed")
    model = tiny_model(tmp_path / "model", hidden=64, spread=0.1)
    for name, settings in (("whole", EIGHT_BIT), ("full", EIGHT_BIT.model_copy(update={"optimiser": "adamw"}))):
        trained(model, tmp_path / name, settings)
    with pytest.raises(Killed):
        trained(model, tmp_path / "killed", EIGHT_BIT, kill_at=5)
    trained(model, tmp_path / "killed", EIGHT_BIT)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    eight, full = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "full"))
    assert [step.loss for step in eight] == pytest.approx([step.loss for step in full], rel=0.1)
    trainee = make_trainee(model, EIGHT_BIT, seed=0, dtype="float32")
    assert isinstance(trainee.optimiser, bitsandbytes.optim.AdamW8bit)
