"""How large a model is by its folder: against published figures, and against what is there once weights are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from inward.engines.memory import drawing_needs, require_memory
from inward.errors import UsageError
from inward.models.size import cache_bytes, count_parameters, stored_bytes
from tests.shapes import LLAMA_8B, shape_only
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shape_only(tmp_path_factory.mktemp("shape") / "8b", LLAMA_8B)


def test_the_figures_of_llama_3_8b_follow_from_its_configuration(eight: Path) -> None:
    config = AutoConfig.from_pretrained(eight)
    parameters = count_parameters(eight)
    assert parameters == 8_030_261_248  # as published
    assert stored_bytes(eight, parameters, config) == 2 * parameters  # its files take 16.1 GB
    assert cache_bytes(config, 2) == 2 * 32 * 8 * 128 * 2  # keys and values, layers, heads, their width, bf16: 128 KiB


def test_a_reward_model_has_a_head_of_one_row(eight: Path, tmp_path: Path) -> None:
    judge = LLAMA_8B | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    language, reward = count_parameters(eight), count_parameters(shape_only(tmp_path, judge))
    assert language is not None
    assert reward == language - 128256 * 4096 + 4096


def test_heads_that_share_no_keys_each_have_their_own(tmp_path: Path) -> None:
    shape = {name: value for name, value in LLAMA_8B.items() if name != "num_key_value_heads"}
    assert cache_bytes(AutoConfig.from_pretrained(shape_only(tmp_path, shape)), 2) == 4 * 2 * 32 * 8 * 128 * 2


def test_a_configuration_tells_what_the_files_hold(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny")
    by_files = count_parameters(model)
    assert stored_bytes(model, 1, AutoConfig.from_pretrained(model)) == (model / "model.safetensors").stat().st_size
    (model / "model.safetensors").unlink()
    assert count_parameters(model) == by_files  # its embeddings are tied: they count once


def test_an_architecture_that_is_code_of_its_own_is_not_guessed_at(tmp_path: Path) -> None:
    assert count_parameters(shape_only(tmp_path, {"model_type": "nobody-knows"})) is None
    assert count_parameters(tmp_path / "nothing") is None


def test_drawing_takes_weights_and_the_keys_and_values_of_all_rows(eight: Path) -> None:
    needs = drawing_needs(eight, dtype=torch.bfloat16, rows=128, tokens=3000)
    assert needs is not None
    assert needs.weights == 2 * 8_030_261_248
    assert needs.cache == 128 * 3000 * 131_072
    assert needs.least == needs.weights + 3000 * 131_072
    halves = drawing_needs(eight, dtype=torch.bfloat16, rows=128, tokens=3000, parts=2)
    assert halves is not None
    assert 2 * halves.total == needs.total
    longer = drawing_needs(eight, dtype=torch.bfloat16, rows=1, tokens=50_000)
    assert longer is not None
    assert longer.tokens == 8192  # no row outgrows the context


def test_what_does_not_fit_with_one_row_is_refused_and_no_more_than_that(eight: Path) -> None:
    needs = drawing_needs(eight, dtype=torch.bfloat16, rows=128, tokens=3000)
    assert needs is not None
    require_memory(needs, needs.least, what="sampling", remedy="Run it elsewhere")
    with pytest.raises(UsageError, match=r"sampling would take at least 15\.3 GiB: 15\.0 for its weights.*has 8\.0\. Run it"):
        require_memory(needs, 8 * 2**30, what="sampling", remedy="Run it elsewhere")
