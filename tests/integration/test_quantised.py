"""An adapter over a base in 4 bits: the reference is that base, the gradients are exact, and the merged model is a plain one.

What needs bitsandbytes is left out where it is not installed: it is no part of the `dev` extra, since most of its 120 MB are
kernels for GPUs.
"""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.config import EarlyStopSettings, LoraSettings, TrainingSettings
from inward.errors import MissingExtraError, UsageError
from inward.training.batches import collate
from inward.training.logps import sequence_logps
from inward.training.memory import check_memory
from inward.training.metrics import StepMetrics
from inward.training.trackers import require_packages
from inward.training.train import train
from inward.training.trainee import Trainee, make_trainee
from inward.training.weights import _multiply_plainly, load_model, merge_adapter
from tests.integration.test_kill import Forks, write_recipe
from tests.pairs import made_examples, stored_reference
from tests.tiny import tiny_model

EXAMPLES = made_examples(8)
PLAIN = TrainingSettings(epochs=2, batch_pairs=4, learning_rate=1e-2, warmup=0.0, save_steps=1, lora=LoraSettings(rank=4))
QUANTISED = PLAIN.model_copy(update={"lora": LoraSettings(rank=4, quantise_base="nf4")})

installed = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the bitsandbytes extra is not installed")
# peft reads an attribute of transformers that is to be renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def seed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), hidden=64, spread=0.1)


def trained(
    model: Path, out: Path, settings: TrainingSettings, *, dtype: str = "float32", kill_at: int | None = None
) -> list[StepMetrics]:
    """Train; with `kill_at`, stop dead right after that step."""
    steps: list[StepMetrics] = []

    def on_step(step: StepMetrics) -> None:
        steps.append(step)
        if step.step == kill_at:
            raise KeyboardInterrupt

    reference = stored_reference(model, EXAMPLES, settings, dtype=dtype)
    train(model, EXAMPLES, reference, settings, out, seed=0, dtype=dtype, on_step=on_step)
    return steps


def restored(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of the quantised layers in fp32."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    return {
        f"{name}.weight": dequantize_4bit(module.weight.data, module.weight.quant_state)
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
    }


def tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(path.glob("*.safetensors")))


@pytest.mark.usefixtures("no_bitsandbytes")
def test_a_quantised_base_needs_its_package(seed_model: Path) -> None:
    for check in (
        lambda: require_packages(QUANTISED),
        lambda: stored_reference(seed_model, EXAMPLES, QUANTISED, dtype="auto"),
        lambda: make_trainee(seed_model, QUANTISED, seed=0, dtype="auto"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'inward\[bitsandbytes\]'"):
            check()


def test_a_folder_that_is_quantised_already_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    stored = tiny_model(tmp_path / "stored")
    config = json.loads((stored / "config.json").read_text())
    quantised = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (stored / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    with pytest.raises(UsageError, match=r"holds quantised weights.*unquantised model.*quantise_base"):
        load_model(stored, torch.float32)


@installed
@pytest.mark.parametrize("batching", ["shared", "padded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_is_the_quantised_base(seed_model: Path, tmp_path: Path, dtype: str, batching: str) -> None:
    settings = QUANTISED.model_copy(update={"epochs": 8, "schedule": "constant", "batching": batching})
    steps = trained(seed_model, tmp_path, settings, dtype=dtype)
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-7)
    assert steps[0].margin == 0.0
    assert steps[-1].margin > 0.5
    assert steps[-1].loss < 0.5
    full = stored_reference(seed_model, EXAMPLES, PLAIN, dtype=dtype)
    low = stored_reference(seed_model, EXAMPLES, settings, dtype=dtype)
    assert any(abs(a.chosen - b.chosen) > 0.01 for a, b in zip(full, low, strict=True)), "nothing was quantised"


@installed
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_gradients_are_those_over_the_restored_weights(seed_model: Path, tmp_path: Path, recompute: bool) -> None:
    """The same adapter over the quantised base, and over a plain fp32 model of its restored weights."""
    low = QUANTISED.model_copy(update={"gradient_checkpointing": recompute})
    quantised = make_trainee(seed_model, low, seed=3, dtype="float32")
    plain = load_model(seed_model, torch.float32)
    weights = {name.replace("base_layer.", ""): weight for name, weight in restored(quantised.model).items()}
    assert {"model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"} <= weights.keys()
    assert plain.load_state_dict(weights, strict=False).unexpected_keys == []
    plain.save_pretrained(tmp_path)
    expected = gradients(make_trainee(tmp_path, PLAIN, seed=3, dtype="float32"))
    found = gradients(quantised)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 2 * 7  # two matrices for each of seven in two layers
    for name, gradient in expected.items():
        assert bool(gradient.any()), name
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def gradients(trainee: Trainee) -> dict[str, torch.Tensor]:
    """Return the adapter's gradients at a place where neither of its matrices is zero."""
    draw = torch.Generator().manual_seed(0)
    for weight in trainee.weights.working:
        weight.data += 0.1 * torch.randn(weight.shape, generator=draw)
    with torch.no_grad():
        sequence_logps(trainee.model, collate(EXAMPLES, torch.device("cpu")))  # being looked at changes nothing
    sequence_logps(trainee.model, collate(EXAMPLES, torch.device("cpu"))).sum().backward()
    found = zip(trainee.weights.names, trainee.weights.working, strict=True)
    return {name: weight.grad for name, weight in found if weight.grad is not None}


@installed
def test_nothing_but_the_adapter_moves(seed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Trainee] = []

    def make(*arguments: Any, **options: Any) -> Trainee:
        taken.append(make_trainee(*arguments, **options))
        return taken[-1]

    monkeypatch.setattr("inward.training.train.make_trainee", make)
    trained(seed_model, tmp_path, QUANTISED)
    before = dict(load_model(seed_model, torch.float32, quantise="nf4").named_parameters())
    after = {name.replace("base_layer.", ""): weight for name, weight in taken[0].model.named_parameters()}
    assert after["model.layers.0.mlp.up_proj.weight"].dtype == torch.uint8
    assert after["model.embed_tokens.weight"].dtype == torch.float32
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert len(after) - len(before) == len(taken[0].weights.names)


@installed
def test_a_kill_changes_nothing(seed_model: Path, tmp_path: Path) -> None:
    lora = LoraSettings(rank=4, dropout=0.3, quantise_base="nf4")
    settings = QUANTISED.model_copy(update={"lora": lora, "early_stop": EarlyStopSettings(share=0.3)})
    trained(seed_model, tmp_path / "whole", settings)
    for kill_at in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            trained(seed_model, tmp_path / f"{kill_at}", settings, kill_at=kill_at)
        trained(seed_model, tmp_path / f"{kill_at}", settings)
        for name in ("epoch_01/adapter_model.safetensors", "epoch_02/adapter_model.safetensors", "held_out.jsonl"):
            assert (tmp_path / f"{kill_at}" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@installed
def test_the_next_model_is_the_adapter_on_the_unquantised_base(seed_model: Path, tmp_path: Path) -> None:
    trained(seed_model, tmp_path / "out", QUANTISED)
    adapter = tensors(tmp_path / "out" / "epoch_02")
    merged = merge_adapter(seed_model, tmp_path / "out" / "epoch_02", tmp_path / "merged")
    before, after = tensors(seed_model), tensors(merged)
    assert (merged / "config.json").read_bytes() == (seed_model / "config.json").read_bytes()
    assert after.keys() == before.keys()
    adapted = {name.removeprefix("base_model.model.").replace(".lora_A", "") for name in adapter if "lora_A" in name}
    for name, weight in before.items():
        expected = weight
        if name in adapted:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            low, high = (adapter[f"{stem}.lora_{part}.weight"] for part in "AB")
            expected = weight + 32.0 / 4 * high @ low
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-6)
    load_model(merged, torch.float32)


@installed
def test_what_it_takes_is_counted_as_it_is_held(tmp_path: Path) -> None:
    path = tiny_model(tmp_path, hidden=256)
    model = load_model(path, torch.bfloat16, quantise="nf4")
    held = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    for module in model.modules():
        if (state := getattr(getattr(module, "weight", None), "quant_state", None)) is not None:
            held += state.absmax.numel() + 4 * state.state2.absmax.numel()
    found = check_memory(path, QUANTISED, dtype="bfloat16", tokens=64)
    without = check_memory(path, PLAIN, dtype="bfloat16", tokens=64)
    assert found is not None
    assert without is not None
    adapter = without.weights - 2 * sum(weight.numel() for weight in load_model(path, torch.bfloat16).parameters())
    assert found.weights == pytest.approx(held + adapter + 2 * 256 * 512, rel=1e-3)  # and the largest matrix, restored
    assert found.weights < without.weights / 2
    work = [make_trainee(path, settings, seed=0, dtype="bfloat16").work for settings in (QUANTISED, PLAIN)]
    assert work[0] == work[1]


@installed
def test_a_model_of_which_nothing_can_be_quantised_is_refused(seed_model: Path) -> None:
    with pytest.raises(UsageError, match=r"training\.lora\.quantise_base .* LlamaForCausalLM has no linear layers"):
        _multiply_plainly(load_model(seed_model, torch.float32))


@installed
@pytest.mark.slow
def test_a_run_of_two_iterations(tmp_path: Path) -> None:
    recipe, forks = write_recipe(tmp_path), Forks(tmp_path / "log.txt")
    lora = "training.lora={ rank = 2, quantise_base = 'nf4' }"
    settings = ("arms=['direct']", "iterations=2", "prompts.per_iteration=4", "prompts.validation=4", "training.reference=seed")
    try:
        ended = forks.run("run", str(recipe), *settings, lora, "--out", str(tmp_path / "run"))
        assert ended == {"code": 0}, forks.log.read_text()
    finally:
        forks.close()
    for folder in (tmp_path / "run" / "direct" / "iter_001", tmp_path / "run" / "direct" / "iter_002"):
        assert (folder / "checkpoints" / "epoch_01" / "adapter_config.json").exists()
        load_model(folder / "model", torch.float32)
    first, second = (
        json.loads((tmp_path / f"run/direct/iter_00{t}/checkpoints/metrics.jsonl").read_text().splitlines()[0]) for t in (1, 2)
    )
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second["loss"] != first["loss"]  # the reference is still the seed, quantised
