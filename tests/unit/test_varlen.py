"""Variable-length kernels in packs: what they are told of a pack, and the trial without which none is used.

The kernels run on GPUs alone. Here a slow function stands for them that does what their documentation says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inward.training import attention
from inward.training.attention import TRIAL, Layout, accelerated, blocked, gathered, heads_of
from inward.training.varlen import Heads, varlen, why_not
from tests.pairs import made_examples
from tests.tiny import tiny_model
from tests.unit.test_packing import layouts, run

KERNEL = "torch.nn.attention.varlen.varlen_attn"
BF16 = Heads(device=torch.device("cpu"), dtype=torch.bfloat16, query=6, key=2, width=16, value_width=16, scaling=0.25)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, unseen_QS: Tensor) -> Tensor:
    """Return attention [Q, H, W] within one sequence."""
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(0, 1) for part in (key, value))
    scores = (query.transpose(0, 1) @ key.transpose(1, 2) * scale).masked_fill(unseen_QS, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1)


def kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    shift: int = 0,
) -> Tensor:
    """Do what `varlen_attn` promises: causal attention in every sequence, whose last query sees its last key."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert (longest_query, longest_key) == (query_ends.diff().max(), key_ends.diff().max())
    assert (window_size, enable_gqa) == ((-1, 0), query.shape[1] != key.shape[1])
    parts = []
    for begin, end, first, last in zip(query_ends[:-1], query_ends[1:], key_ends[:-1], key_ends[1:], strict=True):
        before = int((last - first) - (end - begin))
        unseen = torch.ones(int(end - begin), int(last - first), dtype=torch.bool).triu(before + 1 + shift)
        parts.append(attend(query[begin:end], key[first:last], value[first:last], scale, unseen))
    return torch.cat(parts)


def one_token_too_many(*args: Any, **kwargs: Any) -> Tensor:
    return kernel(*args, **kwargs, shift=1)


def wrong_gradient(*args: Any, **kwargs: Any) -> Tensor:
    """A right output whose gradient does not reach the values."""
    query, key, value, *rest = args
    return kernel(query, key, value.detach() + 0 * value, *rest, **kwargs)


def not_a_number(*args: Any, **kwargs: Any) -> Tensor:
    return kernel(*args, **kwargs) * torch.nan


def no_such_kernel(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")


def older(query: Tensor, key: Tensor) -> Tensor:
    """A version that takes other arguments."""
    return query


@settings(max_examples=60, deadline=None)
@given(layouts(), st.sampled_from([(2, 2), (6, 2), (3, 1)]), st.integers(0, 100))
def test_the_kernel_is_told_what_each_segment_sees(layout: Layout, heads: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def states(count: int) -> Tensor:
        return torch.randn(count, layout.tokens, 4, dtype=torch.float64, generator=generator).requires_grad_()

    inputs = (states(heads[0]), states(heads[1]), states(heads[1]))
    expected = blocked(*inputs, 0.5, layout)
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    with patch(KERNEL, kernel):
        got = varlen(*inputs, 0.5, layout)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, inputs, grad), torch.autograd.grad(expected, inputs, grad))


def test_what_the_kernel_is_told_is_made_once_for_all_layers() -> None:
    layout = Layout((attention.Segment(0, 2), attention.Segment(2, 5, 0, 2)))
    keys_S, query_ends, key_ends = layout.runs(torch.device("cpu"))
    assert keys_S.tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert (query_ends.tolist(), key_ends.tolist()) == ([0, 2, 5], [0, 2, 7])
    assert layout.runs(torch.device("cpu"))[0] is keys_S


def test_a_model_is_trained_alike_with_and_without_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_model(tmp_path, spread=0.1)
    examples = made_examples(4, longest=17, written=2)
    expected, expected_gradients = run(path, examples, "padded")
    monkeypatch.setattr(attention, "blocked", varlen)
    with patch(KERNEL, kernel):
        got, gradients = run(path, examples, "shared")
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_right_kernel_passes_the_trial_in_every_number_format(dtype: torch.dtype) -> None:
    heads = Heads(device=BF16.device, dtype=dtype, query=6, key=2, width=16, value_width=16, scaling=0.25)
    state = torch.get_rng_state()
    with patch(KERNEL, kernel), torch.inference_mode():
        assert why_not(varlen, gathered, blocked, TRIAL, heads) is None
    assert torch.equal(torch.get_rng_state(), state), "nothing else is drawn differently after a trial"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (one_token_too_many, "in a trial its output differed"),
        (wrong_gradient, "in a trial the gradient of the value differed"),
        (not_a_number, "in a trial its output differed from fp32's by nan"),
        (no_such_kernel, "a trial failed with RuntimeError: FlashAttention only supports Ampere GPUs or newer"),
        (older, "a trial failed with TypeError"),
    ],
)
def test_a_kernel_that_is_wrong_anywhere_is_not_taken(wrong: Callable[..., Tensor], reason: str) -> None:
    with patch(KERNEL, wrong):
        said = why_not(varlen, gathered, blocked, TRIAL, BF16)
    assert said is not None
    assert said.startswith(reason)
    assert "more" not in said


def test_here_there_is_no_kernel_and_the_trial_says_so() -> None:
    """The real function, which processors have no kernel for."""
    said = why_not(varlen, gathered, blocked, TRIAL, BF16)
    assert said is not None
    assert said.startswith("a trial failed with NotImplementedError")


def test_memory_that_runs_out_in_a_trial_is_no_reason_against_a_kernel() -> None:
    def greedy(*args: Any, **kwargs: Any) -> Tensor:
        raise torch.OutOfMemoryError

    with patch(KERNEL, greedy), pytest.raises(torch.OutOfMemoryError):
        why_not(varlen, gathered, blocked, TRIAL, BF16)


@pytest.fixture
def untried() -> Iterator[None]:
    accelerated.cache_clear()
    yield
    accelerated.cache_clear()


@pytest.mark.usefixtures("untried")
def test_the_choice_is_made_once_for_heads_of_a_kind_and_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    query, key = torch.zeros(6, 3, 16, dtype=torch.bfloat16), torch.zeros(2, 3, 16, dtype=torch.bfloat16)
    assert heads_of(query, key, key, 0.25) == BF16
    with patch(KERNEL, kernel):
        assert accelerated(BF16) is varlen
    assert accelerated(BF16) is varlen, "there is no second trial"
    assert [record.getMessage() for record in caplog.records] == [
        "attention within packs (6 heads of 16 in bfloat16) is computed by variable-length kernels"
    ]
    caplog.clear()
    other = heads_of(query, key, key[..., :8], 0.25)
    assert accelerated(other) is gathered
    assert caplog.records[0].getMessage().endswith("is computed in padded rows: its keys and values have different widths")
