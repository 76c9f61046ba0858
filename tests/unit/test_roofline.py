"""The benchmarks' count of what sampling takes at least, against a count by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks._roofline import Floor, sampling_floor


def test_the_floor_is_what_a_count_by_hand_gives() -> None:
    model = torch.nn.Module()
    model.body, model.head = torch.nn.Linear(8, 10, bias=False), torch.nn.Linear(8, 20, bias=False)
    text = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2, head_dim=2, num_hidden_layers=1)
    model.config = SimpleNamespace(get_text_config=lambda: text)  # type: ignore[assignment]
    model.get_output_embeddings = lambda: model.head  # type: ignore[assignment]
    floor = sampling_floor(model, [3], [[2, 1]])
    linears = 2 * 80 * (3 + 3) + 2 * 160 * 3
    attention = 4 * 4 * 2 * ((1 + 2 + 3) + (4 + 5) + 4)
    assert floor.operations == linears + attention
    token = 2 * 2 * 2 * 4
    assert floor.bytes == 2 * (80 + 160) * 4 + token * (3 * 2 + (1 + 2) + 1)


def test_the_share_is_that_of_the_peak_that_binds() -> None:
    shares = Floor(operations=100.0, bytes=10.0).shares(2.0, 100.0, 10.0)
    assert shares["roofline_share"] == pytest.approx(0.5)
    assert Floor(operations=100.0, bytes=40.0).shares(4.0, 100.0, 10.0)["bound"] == "bandwidth"
