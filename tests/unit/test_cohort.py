"""Rows that decode together: what they have drawn stays where it is, and rows that go make room without a copy of all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from inward.engines.transformers import cohort as module
from inward.engines.transformers.cohort import Cohort
from inward.engines.transformers.shared_prefix import cut_into_batches

HEADS, GROUP, WIDTH, LAYERS = 2, 3, 4, 2
PROMPTS = (3, 1, 2)
COUNTS = (3, 2, 3)


class Beside:
    """A cohort with the keys and values of each row beside it, whole, and plain attention over them."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        keys, values = (
            [self._draw(len(PROMPTS), HEADS, max(PROMPTS), WIDTH) for _ in range(LAYERS)] for _ in ("keys", "values")
        )
        prompt_of_row = [prompt for prompt, count in enumerate(COUNTS) for _ in range(count)]
        self.cohort = Cohort(list(keys), list(values), list(PROMPTS), prompt_of_row)
        self.texts = [
            [[(store[layer][prompt, :, : PROMPTS[prompt]]) for store in (keys, values)] for layer in range(LAYERS)]
            for prompt in prompt_of_row
        ]

    def step(self) -> None:
        self.cohort.reserve()
        rows = self.cohort.rows
        assert len(self.texts) == rows
        for layer in range(LAYERS):
            query = self._draw(rows, HEADS, GROUP, WIDTH)
            new = [self._draw(rows, HEADS, WIDTH) for _ in ("key", "value")]
            found = self.cohort.attend(layer, query, *new, 0.5)
            for row, text in enumerate(self.texts):
                text[layer] = [torch.cat([old, one[row, :, None]], dim=1) for old, one in zip(text[layer], new, strict=True)]
                keys, values = text[layer]
                expected = torch.softmax(0.5 * query[row] @ keys.transpose(-1, -2), dim=-1) @ values
                assert torch.allclose(found[row], expected, atol=1e-5), (layer, row)
        self.cohort.drawn += 1

    def keep(self, rows: Sequence[int]) -> None:
        order = self.cohort.keep(rows)
        assert sorted(order) == list(rows)
        self.texts = [self.texts[row] for row in order]

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)


def test_attention_over_blocks_with_rows_that_go_is_that_over_each_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROWTH", 2)
    monkeypatch.setattr(module, "BLOCK", 4)
    beside = Beside()
    for kept in ((0, 2, 3, 4, 5, 7), (1, 2, 3, 4, 5), (0, 1, 4), (2,)):
        for _ in range(5):
            beside.step()
        beside.keep(kept)
    for _ in range(3):
        beside.step()


def test_what_has_been_drawn_is_not_copied_once_its_block_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROWTH", 2)
    monkeypatch.setattr(module, "BLOCK", 4)
    beside = Beside()
    for _ in range(4):
        beside.step()
    full = beside.cohort._blocks[0].keys[0]
    for _ in range(7):
        beside.step()
    beside.keep((0, 1, 3, 4, 5, 6, 7))
    assert len(beside.cohort._blocks) == 3
    assert beside.cohort._blocks[0].keys[0] is full, "rows that go leave the others in place"
    beside.keep((0, 3))
    assert beside.cohort._blocks[0].keys[0].shape[0] == 2, "the memory of half the rows is given back"


def test_prompts_read_together_are_of_similar_length_or_few() -> None:
    lengths = [101, 100, 100, 99, 80, 79, 78, 77, 30, 29]
    assert cut_into_batches(lengths) == [(0, 4), (4, 8), (8, 10)]
    assert cut_into_batches([5, 3, 1]) == [(0, 3)]
    assert cut_into_batches([0]) == [(0, 1)]
    assert cut_into_batches([9000, 9000, 20]) == [(0, 1), (1, 2), (2, 3)], "a prompt longer than a batch stands alone"
    unsorted = [20, 300, 20, 290]
    assert [index for start, end in cut_into_batches(unsorted) for index in range(start, end)] == [0, 1, 2, 3]
