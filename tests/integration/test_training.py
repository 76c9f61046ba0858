"""Training from pairs to checkpoints on a tiny model: what it stores, what it refuses, and that it learns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.config import Dtype, LoraSettings, TrainingSettings
from inward.errors import RunChangedError, TrainingError, UsageError
from inward.training.batches import collate
from inward.training.examples import Example
from inward.training.logps import sequence_logps
from inward.training.metrics import StepMetrics
from inward.training.train import train
from inward.training.trainee import make_trainee
from inward.training.weights import load_model, merge_adapter, stored_dtype
from tests.pairs import made_examples, stored_reference
from tests.tiny import tiny_model

GOLDEN = Path(__file__).parent.parent / "golden" / "training_tiny.json"
EXAMPLES = made_examples(8)
SETTINGS = TrainingSettings(epochs=2, batch_pairs=4, learning_rate=3e-3, warmup=0.0)
LORA = SETTINGS.model_copy(update={"lora": LoraSettings(rank=4)})


# peft reads an attribute of transformers that is to be renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def seed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), hidden=16, spread=0.1)


@pytest.fixture(scope="module")
def bf16_model(seed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path_factory.mktemp("bf16")
    AutoModelForCausalLM.from_pretrained(seed_model, dtype=torch.bfloat16).save_pretrained(path)
    AutoTokenizer.from_pretrained(seed_model).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(
    model: Path,
    out: Path,
    settings: TrainingSettings = SETTINGS,
    examples: list[Example] = EXAMPLES,
    *,
    dtype: Dtype = "float32",
    seed: int = 0,
) -> tuple[list[Path], list[StepMetrics]]:
    reference = stored_reference(model, examples, settings, dtype=dtype)
    steps: list[StepMetrics] = []
    return train(model, examples, reference, settings, out, seed=seed, dtype=dtype, on_step=steps.append), steps


def logps(path: Path, dtype: torch.dtype = torch.float32) -> list[float]:
    with torch.no_grad():
        found: list[float] = sequence_logps(load_model(path, dtype), collate(EXAMPLES, torch.device("cpu"))).tolist()
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [SETTINGS, LORA], ids=["full", "lora"])
def test_first_loss_is_log_2_and_the_margin_rises(
    seed_model: Path, tmp_path: Path, settings: TrainingSettings, dtype: Dtype
) -> None:
    settings = settings.model_copy(update={"epochs": 8, "schedule": "constant", "learning_rate": 1e-2})
    _, steps = trained(seed_model, tmp_path, settings, dtype=dtype)
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-7)
    assert steps[0].margin == 0.0
    assert steps[-1].margin > 0.5
    assert steps[-1].accuracy == 1.0
    assert steps[-1].loss < 0.5


def test_metrics_are_one_line_a_step(seed_model: Path, tmp_path: Path) -> None:
    _, steps = trained(seed_model, tmp_path)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [asdict(s) for s in steps]
    assert [(s.step, s.epoch) for s in steps] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert [s.lr for s in steps] == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3])
    assert sum(s.tokens for s in steps) == 2 * sum(e.tokens for e in EXAMPLES)


def test_batch_8_is_8_times_1_accumulated(seed_model: Path, tmp_path: Path) -> None:
    at_once = SETTINGS.model_copy(update={"batch_pairs": 8, "objective": "irpo"})
    one_by_one = at_once.model_copy(update={"batch_tokens": 1})
    _, first = trained(seed_model, tmp_path / "at_once", at_once)
    _, second = trained(seed_model, tmp_path / "one_by_one", one_by_one)
    for a, b in zip(first, second, strict=True):
        for name in ("loss", "grad_norm", "margin", "chosen_logp"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("settings", [SETTINGS, LORA], ids=["full", "lora"])
def test_gradients_go_to_the_masters_and_the_working_ones_are_freed_at_once(
    seed_model: Path, monkeypatch: pytest.MonkeyPatch, settings: TrainingSettings
) -> None:
    """Bit for bit what collecting them after the backward pass gives, also of tied weights and over two passes."""

    def backward(trainee: Any) -> None:
        sequence_logps(trainee.model, collate(EXAMPLES, torch.device("cpu"), trainee.batching)).sum().backward()

    plain = make_trainee(seed_model, settings, seed=0, dtype="bfloat16")
    for working in plain.weights.working:
        working._post_accumulate_grad_hooks.clear()  # type: ignore[attr-defined]
    backward(plain)
    trainee = make_trainee(seed_model, settings, seed=0, dtype="bfloat16")
    for passes in (1, 2):
        backward(trainee)
        for working, master, expected in zip(
            trainee.weights.working, trainee.weights.master, plain.weights.working, strict=True
        ):
            assert working.grad is None
            assert master.grad is not None
            assert expected.grad is not None
            assert torch.equal(master.grad, passes * expected.grad.float())


def test_a_step_reads_from_the_device_no_more_often_for_more_micro_batches(
    seed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    def counted(read: Any) -> Any:
        def call(tensor: torch.Tensor, *arguments: Any) -> Any:
            nonlocal reads
            reads += 1
            return read(tensor, *arguments)

        return call

    counts = []
    settings = SETTINGS.model_copy(update={"batch_pairs": 8, "epochs": 1})
    for tokens in (4096, 1):
        one_step = settings.model_copy(update={"batch_tokens": tokens})
        reference = stored_reference(seed_model, EXAMPLES, one_step, dtype="float32")
        reads = 0
        with monkeypatch.context() as patch:
            for name in ("tolist", "item", "__float__", "__bool__", "__int__"):
                patch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
            train(seed_model, EXAMPLES, reference, one_step, tmp_path / str(tokens), seed=0, dtype="float32")
        counts.append(reads)
    assert counts[0] == counts[1] > 0


def test_checkpoints_are_whole_models_in_the_dtype_they_came_in(bf16_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    epochs, _ = trained(bf16_model, tmp_path, dtype="bfloat16")
    assert epochs == [tmp_path / "epoch_01", tmp_path / "epoch_02"]
    for epoch in epochs:
        assert {path.name for path in epoch.iterdir()} == {path.name for path in bf16_model.iterdir()}
        for path in bf16_model.iterdir():
            if path.suffix != ".safetensors":
                assert path.read_bytes() == (epoch / path.name).read_bytes()
        assert stored_dtype(epoch) is torch.bfloat16
        # tied weights are stored once, everything in two bytes
        assert (epoch / "model.safetensors").stat().st_size == (bf16_model / "model.safetensors").stat().st_size
        assert AutoTokenizer.from_pretrained(epoch).chat_template
    before, first, second = logps(bf16_model), logps(epochs[0]), logps(epochs[1])
    assert before != first != second


@pytest.mark.parametrize("stored", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("native", "working"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_trains_in_what_sampling_takes_and_stores_what_it_was_given(
    seed_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    native: bool,
    working: torch.dtype,
    stored: torch.dtype,
) -> None:
    """The masters hold every bit of the stored weights, whatever they are rounded to for a forward pass."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    model = AutoModelForCausalLM.from_pretrained(seed_model, dtype=stored)
    model.save_pretrained(tmp_path / "model")
    trainee = make_trainee(tmp_path / "model", SETTINGS, seed=0, dtype="auto")
    originals = dict(model.named_parameters())
    for name, weight, master in zip(trainee.weights.names, trainee.weights.working, trainee.weights.master, strict=True):
        assert weight.dtype == trainee.dtype == working
        assert torch.equal(master, originals[name].float())
    settings = SETTINGS.model_copy(update={"epochs": 1})
    epochs, steps = trained(tmp_path / "model", tmp_path / "out", settings, dtype="auto")
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-7)
    assert stored_dtype(epochs[0]) is stored


def test_small_updates_are_not_lost_in_bf16(bf16_model: Path, tmp_path: Path) -> None:
    """Twenty steps at 3e-5 move a weight of 0.1 by about its last bf16 digit (4e-4); each by itself would be rounded off."""
    settings = SETTINGS.model_copy(update={"epochs": 10, "learning_rate": 3e-5, "schedule": "constant"})
    epochs, _ = trained(bf16_model, tmp_path, settings, dtype="bfloat16")
    before, after = load_model(bf16_model, torch.float32), load_model(epochs[-1], torch.float32)
    old, new = before.model.layers[0].mlp.up_proj.weight, after.model.layers[0].mlp.up_proj.weight
    assert ((old.abs() > 0.05) & (old != new)).float().mean() > 0.02


def test_lora_reference_is_the_model_with_the_adapter_off_and_merging_keeps_the_logits(
    bf16_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    reference = stored_reference(bf16_model, EXAMPLES, LORA, dtype="float32")
    epochs, _ = trained(bf16_model, tmp_path / "out", LORA, dtype="float32")
    adapted = PeftModel.from_pretrained(load_model(bf16_model, torch.float32), epochs[-1]).eval()
    batch = collate(EXAMPLES, torch.device("cpu"))
    with torch.no_grad(), adapted.disable_adapter():
        off = sequence_logps(adapted.get_base_model(), batch).tolist()
    assert off == pytest.approx([r.chosen for r in reference] + [r.rejected for r in reference], rel=1e-5)
    with torch.no_grad():
        on = sequence_logps(adapted.get_base_model(), batch).tolist()
    assert on != pytest.approx(off, rel=1e-3)

    merged = merge_adapter(bf16_model, epochs[-1], tmp_path / "merged")
    assert stored_dtype(merged) is torch.bfloat16
    assert {path.name for path in merged.iterdir()} == {path.name for path in bf16_model.iterdir()}
    assert logps(merged) == pytest.approx(on, rel=5e-3)  # the weights are rounded to bf16


def test_a_merge_into_fp32_weights_gives_the_same_logits(seed_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    epochs, _ = trained(seed_model, tmp_path / "out", LORA)
    adapted = PeftModel.from_pretrained(load_model(seed_model, torch.float32), epochs[-1]).eval()
    merged = load_model(merge_adapter(seed_model, epochs[-1], tmp_path / "merged"), torch.float32)
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_complete_result_is_returned_at_once_and_a_changed_one_refused(seed_model: Path, tmp_path: Path) -> None:
    reference = stored_reference(seed_model, EXAMPLES, SETTINGS, dtype="auto")
    arguments: dict[str, Any] = {"seed": 0, "dtype": "auto"}
    epochs = train(seed_model, EXAMPLES, reference, SETTINGS, tmp_path, **arguments)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / ".tmp-epoch_02").mkdir()
    steps: list[StepMetrics] = []
    assert train(seed_model, EXAMPLES[::-1], reference, SETTINGS, tmp_path, on_step=steps.append, **arguments) == epochs
    assert not steps
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == times
    assert not (tmp_path / ".tmp-epoch_02").exists()
    for changed in ({"seed": 1, "dtype": "auto"}, {"seed": 0, "dtype": "bfloat16"}):
        with pytest.raises(RunChangedError, match=r"trained with other (seed|dtype)"):
            train(seed_model, EXAMPLES, reference, SETTINGS, tmp_path, **changed)
    with pytest.raises(RunChangedError, match="other settings"):
        train(seed_model, EXAMPLES, reference, LORA, tmp_path, **arguments)


def test_a_loss_that_is_not_finite_stops_with_the_batch_stored(seed_model: Path, tmp_path: Path) -> None:
    """Weights that grow beyond all bounds in the first step make the second one's loss not finite."""
    settings = SETTINGS.model_copy(update={"learning_rate": 1e38})
    with pytest.raises(TrainingError, match="the loss of step 2 is not finite; its pairs are pair-") as caught:
        trained(seed_model, tmp_path, settings)
    stored = json.loads((tmp_path / "bad_batch.json").read_text())
    assert (stored["step"], stored["epoch"], stored["reason"]) == (2, 1, "the loss")
    assert len(stored["pairs"]) == 4
    for row in stored["pairs"]:
        assert row["pair_id"] in str(caught.value)
        example = next(example for example in EXAMPLES if example.pair_id == row["pair_id"])
        assert tuple(row["chosen_tokens"]) == example.chosen_tokens
        assert math.isnan(float(row["chosen_logp"]))
        assert math.isfinite(float(row["reference_chosen"]))
    assert not list(tmp_path.glob("epoch_*"))
    assert not list(tmp_path.glob("state/*"))


def test_a_gradient_that_is_not_finite_stops_too(seed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(model: Any, batch: Any) -> torch.Tensor:
        sums_R = sequence_logps(model, batch)
        sums_R.register_hook(lambda gradient: gradient * math.inf)
        return sums_R

    reference = stored_reference(seed_model, EXAMPLES, SETTINGS, dtype="float32")
    monkeypatch.setattr("inward.training.train.sequence_logps", poisoned)
    with pytest.raises(TrainingError, match="the gradient of step 1 is not finite"):
        train(seed_model, EXAMPLES, reference, SETTINGS, tmp_path, seed=0, dtype="float32")
    assert json.loads((tmp_path / "bad_batch.json").read_text())["reason"] == "the gradient"


def test_what_a_user_can_get_wrong(seed_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no pairs to train on"):
        train(seed_model, [], [], SETTINGS, tmp_path, seed=0, dtype="auto")
    with pytest.raises(UsageError, match="holds no config"):
        stored_reference(tmp_path / "nothing", EXAMPLES, SETTINGS, dtype="auto")
    wrong = SETTINGS.model_copy(update={"lora": LoraSettings(targets=("no_such_layer",))})
    with pytest.raises(UsageError, match="no_such_layer"):
        trained(seed_model, tmp_path / "out", wrong)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_dropout_on_an_adapted_head_is_refused(tmp_path: Path) -> None:
    """Its log-probabilities are computed again in the backward pass, by other masks."""
    model = tiny_model(tmp_path / "model")
    for dropout in (0.0, 0.5):
        adapted = SETTINGS.model_copy(update={"lora": LoraSettings(targets=("lm_head",), dropout=dropout)})
        if dropout:
            with pytest.raises(UsageError, match=r"training\.lora\.dropout.*training\.lora\.targets"):
                make_trainee(model, adapted, seed=0, dtype="float32")
        else:
            make_trainee(model, adapted, seed=0, dtype="float32")


def test_golden_trajectory(seed_model: Path, tmp_path: Path) -> None:
    """Twenty steps in fp32, stored from the first version; the tolerance is for other processors' rounding."""
    settings = SETTINGS.model_copy(update={"epochs": 10, "objective": "irpo", "learning_rate": 2e-3, "warmup": 0.1})
    _, steps = trained(seed_model, tmp_path, settings, seed=7)
    found = [{"loss": s.loss, "margin": s.margin, "nll": s.nll, "grad_norm": s.grad_norm} for s in steps]
    golden = json.loads(GOLDEN.read_text())
    assert len(found) == len(golden) == 20
    for ours, theirs in zip(found, golden, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-4)
