"""An adapter folder as an engine: merged into its base, wherever that lies now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inward.engines.engine import Decoding, Request
from inward.engines.transformers.engine import load_engine
from inward.errors import UsageError
from tests.tiny import tiny_model

DECODING = Decoding(max_new_tokens=12, temperature=1.0)


def tiny_adapter(base: Path, path: Path) -> Path:
    """Save a random LoRA adapter, large enough to change what is drawn, that names `base` as its base model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    adapted: Any = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(path)
    assert json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    return path


def drawn(engine: Any) -> list[tuple[int, ...]]:
    request = Request(id="a", tokens=engine.encode([{"role": "user", "content": "Hi"}]), k=3)
    return [one.tokens for one in engine.generate([request], DECODING, seed=0)]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_an_adapter_is_merged_into_the_base_that_is_given(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "run" / "seed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter = tiny_adapter(base, tmp_path / "run" / "adapter")
    before = drawn(load_engine(adapter, dtype="float32"))
    assert before != drawn(load_engine(base, dtype="float32"))

    moved = tmp_path / "moved"
    shutil.move(tmp_path / "run", moved)
    with pytest.raises(UsageError, match=r"no tokenizer could be loaded from .*seed"):
        load_engine(moved / "adapter", dtype="float32")
    assert drawn(load_engine(moved / "adapter", base=moved / "seed", dtype="float32")) == before
    other = tiny_model(tmp_path / "other", seed=1)
    assert drawn(load_engine(moved / "adapter", base=other, dtype="float32")) != before


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_only_weights_are_rounded_to_the_number_format(tmp_path: Path) -> None:
    """Rotary frequencies stay in fp32, as in transformers and in training: rounded, they turn a late token by a radian."""
    base = tiny_model(tmp_path / "seed")
    adapter = tiny_adapter(base, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    expected = dict(plain.named_buffers())
    assert any(buffer.dtype == torch.float32 for buffer in expected.values())
    for folder in (base, adapter):
        engine = load_engine(folder, dtype="bfloat16")
        assert {parameter.dtype for parameter in engine.model.parameters()} == {torch.bfloat16}
        for name, buffer in engine.model.named_buffers():
            assert torch.equal(buffer, expected[name]), name
            assert buffer.dtype == expected[name].dtype, name


def test_a_whole_model_needs_no_base(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    assert drawn(load_engine(model, base=tmp_path / "absent", dtype="float32")) == drawn(load_engine(model, dtype="float32"))
