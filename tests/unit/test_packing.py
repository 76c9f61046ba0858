"""Packs: no sequence sees another, a prompt that two share is theirs, and nothing depends on how a batch is laid out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inward.config import Batching
from inward.training import attention, logps
from inward.training.attention import Layout, Segment
from inward.training.batches import collate
from inward.training.examples import Example
from inward.training.logps import sequence_logps, token_logps
from inward.training.support import choose_batching
from inward.training.weights import load_model
from tests.pairs import made_examples
from tests.tiny import tiny_model

CPU = torch.device("cpu")
LAYOUTS: tuple[Batching, ...] = ("shared", "packed", "padded")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), spread=0.1)


def run(path: Path, examples: list[Example], batching: Batching, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Any]:
    """Return the sequences' log-probabilities and the gradients of their weighted sum by name."""
    model = load_model(path, dtype)
    assert choose_batching(model, batching) == batching
    sums_R = sequence_logps(model, collate(examples, CPU, batching))
    (sums_R * torch.linspace(-1, 1, len(sums_R))).sum().backward()
    return sums_R.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def test_packed_is_padded_and_shared_is_unshared(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", 5)  # so that short sequences have several blocks
    examples = made_examples(7, longest=17, written=2)
    expected, expected_gradients = run(model_path, examples, "padded")
    for batching in ("shared", "packed"):
        found, gradients = run(model_path, examples, batching)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for name, gradient in expected_gradients.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("batching", LAYOUTS)
def test_company_changes_no_sequence(model_path: Path, batching: Batching) -> None:
    examples = made_examples(5, longest=40)
    together, _ = run(model_path, examples, batching)
    for at, example in enumerate(examples):
        alone, _ = run(model_path, [example], batching)
        torch.testing.assert_close(alone, together[[at, at + 5]], rtol=1e-5, atol=1e-5)


def test_an_output_does_not_see_its_rival(model_path: Path) -> None:
    (example,) = made_examples(1, longest=20)
    other = dataclasses.replace(example, rejected_tokens=tuple(255 - token for token in example.rejected_tokens))
    assert torch.equal(run(model_path, [example], "shared")[0][0], run(model_path, [other], "shared")[0][0])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    segments: list[Segment] = []
    at = 0
    for _ in range(draw(st.integers(1, 3))):
        prompt = draw(st.integers(1, 9))
        segments.append(Segment(at, at + prompt))
        begin, at = at, at + prompt
        for _ in range(draw(st.integers(0, 3))):
            size = draw(st.integers(1, 9))
            segments.append(Segment(at, at + size, begin, begin + prompt))
            at += size
    return Layout(tuple(segments))


@settings(max_examples=60, deadline=None)
@given(layouts(), st.sampled_from([(2, 2), (6, 2), (3, 1)]), st.integers(0, 100))
def test_both_ways_are_attention_with_the_mask_written_out(layout: Layout, heads: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size, width = layout.tokens, 4

    def states(count: int) -> Tensor:
        return torch.randn(count, size, width, dtype=torch.float64, generator=generator).requires_grad_()

    query, key, value = states(heads[0]), states(heads[1]), states(heads[1])
    seen_TT = torch.zeros(size, size, dtype=torch.bool)
    for segment in layout.segments:
        for token in range(segment.start, segment.end):
            seen_TT[token, segment.prefix_start : segment.prefix_end] = True
            seen_TT[token, segment.start : token + 1] = True
    repeated = [part.repeat_interleave(heads[0] // heads[1], 0) for part in (key, value)]
    weights = (query @ repeated[0].transpose(1, 2) * 0.5).masked_fill(~seen_TT, -torch.inf).softmax(-1)
    expected = weights @ repeated[1]
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    expected_grads = torch.autograd.grad(expected, (query, key, value), grad)
    block, attention.BLOCK = attention.BLOCK, 4
    try:
        for compute in (attention.blocked, attention.gathered):
            found = compute(query, key, value, 0.5, layout)
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(torch.autograd.grad(found, (query, key, value), grad), expected_grads)
    finally:
        attention.BLOCK = block


def test_gathered_rows_share_keys_in_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    layout = Layout((Segment(0, 4), Segment(4, 9, 0, 4), Segment(9, 12, 0, 4)))
    query, key, value = (torch.randn(heads, 12, 8, generator=generator) for heads in (6, 2, 2))
    expected = attention.blocked(query, key, value, 0.5, layout)
    rounded = attention.gathered(query.bfloat16(), key.bfloat16(), value.bfloat16(), 0.5, layout)
    torch.testing.assert_close(rounded.float(), expected, rtol=0.05, atol=0.05)


def test_the_rows_of_a_pack_are_laid_out_once_for_all_layers() -> None:
    layout = Layout((Segment(0, 2), Segment(2, 5, 0, 2)))
    index_RL, place_T = layout.rows(CPU)
    assert index_RL.tolist() == [[0, 1, 0, 0, 0], [0, 1, 2, 3, 4]]
    assert place_T.tolist() == [0, 1, 7, 8, 9]
    assert layout.rows(CPU)[0] is index_RL


def test_positions_go_on_from_the_prefix() -> None:
    layout = Layout((Segment(0, 2), Segment(2, 5, 0, 2), Segment(5, 6, 0, 2), Segment(6, 8)))
    assert layout.positions() == [0, 1, 2, 3, 4, 2, 0, 1]


def test_a_model_with_a_sliding_window_is_trained_with_padding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
    )
    model = MistralForCausalLM(config).eval()
    usual = model.config._attn_implementation
    assert choose_batching(model, "shared") == "padded"
    assert "sliding window" in caplog.text
    assert model.config._attn_implementation == usual
    examples = made_examples(3, longest=20)
    whole = sequence_logps(model, collate(examples, CPU, "padded")).tolist()
    for at, example in enumerate(examples):
        tokens = torch.tensor([example.prompt_tokens + example.chosen_tokens])
        logps_TV = model(input_ids=tokens).logits[0].log_softmax(-1).detach()
        start = len(example.prompt_tokens) - 1
        expected = sum(logps_TV[start + i, token] for i, token in enumerate(example.chosen_tokens))
        assert whole[at] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 3 * 40, 10**9])
def test_the_heads_own_gradient_is_autograds(chunk: int, bias: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunked = whole = log_softmax differentiated by autograd, in float64; also where only the hidden states learn."""
    monkeypatch.setattr(logps, "CHUNK_LOGITS_CPU", chunk)
    monkeypatch.setattr(logps, "HEAD_ROWS", 7)
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    hidden, weight, targets = tensor(11, 6), tensor(40, 6), torch.randint(0, 40, (11,), generator=generator)
    inputs = [hidden, weight, *([tensor(40)] if bias else [])]
    grad = torch.randn(11, generator=generator)
    learned = inputs[:1] if frozen else inputs
    for parameter in inputs:
        parameter.requires_grad_(any(parameter is one for one in learned))
    found = logps._LinearHead.apply(hidden, targets, weight, inputs[2] if bias else None, 0.7)
    logits = 0.7 * torch.nn.functional.linear(*inputs)
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found, expected.float())
    found_grads = torch.autograd.grad(found, learned, grad)
    expected_grads = torch.autograd.grad(expected, learned, grad.double())
    for ours, theirs in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_capped_head_is_differentiated_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=2.0,
        attn_logit_softcapping=None,
    )
    model = Gemma2ForCausalLM(config).eval()
    examples = made_examples(3, longest=9)
    batch = collate(examples, CPU)
    gradients = []
    for chunk in (2 * 259, 10**9):
        monkeypatch.setattr(logps, "CHUNK_LOGITS_CPU", chunk)
        model.zero_grad(set_to_none=True)
        token_logps(model, batch).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_logits_are_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the forward or the backward pass has more numbers than a chunk of logits or the head itself."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    tokens, width, vocabulary = 500, 4, 1000
    monkeypatch.setattr(logps, "CHUNK_LOGITS_CPU", 20 * vocabulary)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    with Watch():
        logps._LinearHead.apply(hidden, torch.zeros(tokens, dtype=torch.long), weight, None, 1.0).sum().backward()
    assert largest == 20 * vocabulary
