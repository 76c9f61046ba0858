"""The measurements for a GPU, rehearsed without one: they run on a random model, and call other benchmarks as these allow."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu

PROCESSOR_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the figures are other ones")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpu.random_model(tmp_path_factory.mktemp("random"), "tiny")


def test_the_sizes_are_what_they_say() -> None:
    """Weights of a Llama: attention, its MLP of four times the width, and one table for words and head."""
    for name, billions in (("0.5b", 0.5), ("1.5b", 1.5)):
        size = gpu.SIZES[name]
        width, share = size["hidden_size"], size["num_key_value_heads"] / size["num_attention_heads"]
        layer = width**2 * (2 + 2 * share) + 3 * 4 * width**2
        count = size["num_hidden_layers"] * layer + gpu.VOCABULARY * width
        assert count == pytest.approx(billions * 1e9, rel=0.15), name


def test_other_benchmarks_are_called_as_they_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(gpu, "_run", lambda command: commands.append(command) or {})
    result = gpu.measure(Path("model"), tokens=8, pairs=2)
    assert list(result) == ["benchmark", "device", "torch", "sampling", "training", "training_padded_rows", "kernels", "turns"]
    for module, *arguments in commands:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        parsed = importlib.import_module(module)._parse()
        assert parsed.model == "model"
        assert parsed.json or parsed.part


def test_a_measurement_that_fails_says_so_and_the_others_go_on() -> None:
    failed: dict[str, Any] = gpu._run(["benchmarks.gpu", "--part", "nonsense"])
    assert "invalid choice" in failed["failed"]


@PROCESSOR_ONLY
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_turns_and_kernels_can_be_rehearsed_on_a_processor(model: Path) -> None:
    names = ("sampler", "judge", "trainer_lora", "trainer")
    assert gpu.turns(model).keys() == {"before", *names, *(f"after_{name}" for name in names)}
    assert "NotImplementedError" in gpu.kernels(model)["why_not"]
