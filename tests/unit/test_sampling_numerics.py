"""The transformers engine computes what the model says: logits, greedy tokens, and the distribution of the draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inward.engines.engine import Decoding, Request
from inward.engines.row import Rules
from inward.engines.transformers.decode import Decoder, decode
from inward.engines.transformers.engine import load_engine
from inward.engines.transformers.linear_layout import lay_out_linears
from inward.engines.transformers.nucleus import check_finite, draw, largest, row_key, uniforms
from inward.engines.transformers.padded import PaddedDecoder
from inward.engines.transformers.shared_prefix import SharedPrefixDecoder
from inward.errors import InwardError, UsageError
from tests.tiny import tiny_model, tiny_tokenizer

TEXTS = ("Hi", "Why is the sky blue?", "Name three rivers and say where they flow.", "1 + 1 =", "Go")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Any:
    return load_engine(folder, rows=7, dtype="float32")


def ask(engine: Any, k: int = 3) -> list[Request]:
    return [Request(id=text, tokens=engine.encode([{"role": "user", "content": text}]), k=k) for text in TEXTS]


def plain_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1].float()


class Watched:
    """A decoder that checks every row of every step against a plain forward pass over that row's whole text."""

    def __init__(self, inner: Decoder, model: Any) -> None:
        self.inner, self.model, self.refillable, self.idle_share = inner, model, inner.refillable, inner.idle_share
        self.texts: list[list[int]] = []
        self.worst, self.admitted, self.kept = 0.0, 0, 0

    def admit(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        self.inner.admit(prompts, counts)
        self.admitted += 1
        for prompt, count in zip(prompts, counts, strict=True):
            self.texts += [list(prompt[:-1]) for _ in range(count)]

    def step(self, tokens_R: torch.Tensor) -> torch.Tensor:
        logits = self.inner.step(tokens_R)
        for text, token, found in zip(self.texts, tokens_R.tolist(), logits, strict=True):
            text.append(token)
            self.worst = max(self.worst, float((found.float() - plain_logits(self.model, text)).abs().max()))
        return logits

    def keep(self, rows: Sequence[int]) -> list[int]:
        self.kept += 0 < len(rows) < len(self.texts)
        order = self.inner.keep(rows)
        assert sorted(order) == list(rows)
        self.texts = [self.texts[row] for row in order]
        return order


@pytest.mark.parametrize("kind", ["shared", "padded"])
@torch.inference_mode()
def test_every_step_has_the_logits_of_a_plain_forward_pass(engine: Any, kind: str) -> None:
    """Through compaction, refilling, growth by blocks, and prompts of one token and of many."""
    engine.model.set_attn_implementation("inward_shared_prefix" if kind == "shared" else "sdpa")
    inner: Decoder = SharedPrefixDecoder(engine.model, []) if kind == "shared" else PaddedDecoder(engine.model)
    watched = Watched(inner, engine.model)
    requests = [*ask(engine), Request(id="one token", tokens=(65,), k=4)]
    stops = frozenset(range(0, 259, 23))
    rules = Rules(stops=stops, max_new_tokens=40, decode=engine._text)
    decoding = Decoding(temperature=1.5, top_p=1.0)
    rows = decode(watched, requests, rules, decoding, rows=7, seed=3, progress=None, device=torch.device("cpu"))
    engine.model.set_attn_implementation("inward_shared_prefix")
    assert len(rows) == 19
    assert max(len(row.tokens) for row in rows) > 32  # more than one block
    assert watched.admitted > 2
    assert watched.kept > 2
    assert watched.worst < 1e-4


@pytest.mark.parametrize("kind", ["shared", "padded"])
@pytest.mark.parametrize("late", [1, 4, 50])
@torch.inference_mode()
def test_tokens_that_are_read_late_are_the_same(engine: Any, kind: str, late: int) -> None:
    """A row goes on for some steps after it has ended, and nothing of that is kept: neither tokens nor log-probabilities."""
    engine.model.set_attn_implementation("inward_shared_prefix" if kind == "shared" else "sdpa")
    rules = Rules(stops=frozenset(range(0, 259, 23)), max_new_tokens=40, decode=engine._text)
    drawn = []
    for steps in (0, late):
        decoder: Decoder = SharedPrefixDecoder(engine.model, []) if kind == "shared" else PaddedDecoder(engine.model)
        taken: list[tuple[int, int]] = []
        rows = decode(
            decoder,
            ask(engine),
            rules,
            Decoding(temperature=1.5, top_p=1.0, logps=True),
            rows=7,
            seed=3,
            progress=lambda ended, tokens, taken=taken: taken.append((ended, tokens)),  # type: ignore[misc]
            device=torch.device("cpu"),
            late=steps,
        )
        assert sum(ended for ended, _ in taken) == len(rows)
        assert sum(tokens for _, tokens in taken) == sum(len(row.tokens) for row in rows)
        drawn.append({(row.request_id, row.index): row for row in rows})
    engine.model.set_attn_implementation("inward_shared_prefix")
    assert drawn[0].keys() == drawn[1].keys()
    for key, row in drawn[0].items():
        other = drawn[1][key]
        assert (row.tokens, row.finish) == (other.tokens, other.finish)
        assert other.logps == pytest.approx(row.logps, abs=1e-4)


def test_nearly_no_temperature_gives_the_greedy_tokens_of_generate(engine: Any) -> None:
    requests = ask(engine, k=1)
    drawn = engine.generate(requests, Decoding(max_new_tokens=40, temperature=1e-6), seed=1)
    for request, one in zip(requests, drawn, strict=True):
        prompt = torch.tensor([request.tokens])
        with torch.inference_mode():
            engine.model.set_attn_implementation("sdpa")
            whole = engine.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False)
            engine.model.set_attn_implementation("inward_shared_prefix")
        assert list(one.tokens) == whole[0, prompt.shape[1] :].tolist()


def test_bf16_stays_near_fp32(folder: Path, engine: Any) -> None:
    low = load_engine(folder, dtype="bfloat16")
    assert low.shared
    prompt = ask(engine)[1].tokens
    with torch.inference_mode():
        decoder = SharedPrefixDecoder(low.model, [])
        decoder.admit([prompt], [2])
        found = decoder.step(torch.tensor([prompt[-1]] * 2)).float()
        expected = plain_logits(engine.model, prompt)
    assert float((found - expected).abs().mean()) < 0.03 * float(expected.std())


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bf16 products in oneDNN")
def test_packed_layers_give_the_same_products(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    layer = torch.nn.Linear(96, 40, dtype=torch.bfloat16)  # with a bias, which the tiny Llama has not
    inputs = [torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)).bfloat16() for rows in (1, 7, 130)]
    with torch.inference_mode():
        before = [layer(x) for x in inputs]
        assert lay_out_linears(layer, rows=7) == 1
        assert lay_out_linears(plain, rows=7) == 15
        for x, expected in zip(inputs, before, strict=True):
            assert torch.allclose(layer(x), expected, atol=0.02)


def test_only_bf16_layers_are_packed(engine: Any) -> None:
    assert lay_out_linears(engine.model, rows=7) == 0


def test_first_tokens_follow_softmax_with_top_p(engine: Any) -> None:
    decoding = Decoding(max_new_tokens=1, temperature=1.3, top_p=0.8)
    count = 4000
    request = replace(ask(engine)[1], k=count)
    drawn = replace(engine, rows=512).generate([request], decoding, seed=11)
    with torch.inference_mode():
        probs = torch.softmax(plain_logits(engine.model, request.tokens).double() / decoding.temperature, dim=-1)
    order = probs.argsort(descending=True)
    nucleus = order[: int((probs[order].cumsum(0) < decoding.top_p).sum()) + 1]
    expected = count * probs[nucleus] / probs[nucleus].sum()
    found = Counter(one.tokens[0] for one in drawn)
    assert set(found) <= set(nucleus.tolist())
    common = expected >= 5
    observed = torch.tensor([found[int(token)] for token in nucleus], dtype=torch.double)
    chi2 = float((((observed - expected) ** 2) / expected)[common].sum())
    degrees = int(common.sum()) - 1
    assert degrees > 10
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5  # four standard deviations


@pytest.mark.parametrize("vocabulary", [100, 259, 5000, 49152 + 7])
@pytest.mark.parametrize("count", [1, 64, 256])
def test_largest_is_topk(vocabulary: int, count: int) -> None:
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(count)).to(torch.bfloat16)
    values, ids = largest(logits, count)
    assert torch.equal(values, logits.topk(min(count, vocabulary)).values)
    assert torch.equal(logits.gather(1, ids), values)
    assert all(len(set(row)) == len(row) for row in ids.tolist())


def test_draw_picks_by_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(5, 1)
    numbers = np.array([0.0, 0.52, 0.53, 0.84, 0.999999999])
    whole = Decoding(temperature=1.0, top_p=0.94)  # keeps 0.5, 0.3, 0.15: mass 0.95
    assert draw(logits, whole, numbers).tolist() == [0, 0, 1, 1, 2]
    assert draw(logits, replace(whole, top_k=2), numbers).tolist() == [0, 0, 0, 1, 1]
    assert draw(logits, replace(whole, top_p=0.01), numbers).tolist() == [0] * 5
    assert draw(logits, replace(whole, top_p=1.0), np.array([0.96] * 5)).tolist() == [3] * 5


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(InwardError, match="not finite"):
        check_finite(draw(torch.tensor([[0.0, float("nan")]]), Decoding(), np.array([0.5])).tolist())


def test_uniforms_are_uniform_and_belong_to_key_and_position() -> None:
    keys = [row_key(seed, "prompt", index) for seed in range(20) for index in range(20)]
    assert len(set(keys)) == 400
    numbers = np.array([uniforms(keys, [position] * 400) for position in range(50)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    histogram, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert ((histogram - 1000) ** 2 / 1000).sum() < 50  # chi-square with 19 degrees: P(> 50) < 0.0002
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03
    assert uniforms([keys[3]], [7])[0] == numbers[7, 3]


def sliding_window_model(path: Path) -> Path:
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = tiny_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=258,
        pad_token_id=256,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MistralForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_sliding_window_takes_the_padded_cache_says_so_and_is_right(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sliding = load_engine(sliding_window_model(tmp_path), rows=5, dtype="float32")
    assert not sliding.shared
    assert "slower padded cache: it attends within a sliding window" in caplog.text
    requests = ask(sliding, k=2)
    drawn = sliding.generate(requests, Decoding(max_new_tokens=30, temperature=1e-6), seed=1)
    for at, request in enumerate(requests):
        prompt = torch.tensor([request.tokens])
        with torch.inference_mode():
            whole = sliding.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False)
        assert list(drawn[2 * at].tokens) == list(drawn[2 * at + 1].tokens) == whole[0, prompt.shape[1] :].tolist()


def test_attention_that_is_not_plain_is_found_by_the_trial(folder: Path) -> None:
    from inward.engines.transformers.trial import choose_decoder, ordinary_batch

    engine = load_engine(folder, dtype="float32")
    engine.model.set_attn_implementation("sdpa")
    layer = engine.model.model.layers[0].self_attn
    whole = layer.forward

    def biased(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        output, weights = whole(*args, attention_mask=attention_mask, **kwargs)
        return (output if kwargs.get("cohorts") is None else output * 3), weights

    layer.forward = biased
    decoder, reasons = choose_decoder(engine.model, ordinary_batch(engine.tokenizer, engine.context), small=None)
    assert decoder == "padded"
    assert "in a trial it differed from the plain forward pass" in reasons[0]
    assert engine.model.config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_an_adapter_is_merged_into_its_base(tmp_path: Path, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(folder)
        tuned = get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"]))
    tuned.save_pretrained(tmp_path)
    engine = load_engine(tmp_path, dtype="float32")
    tokens = ask(engine)[0].tokens
    with torch.inference_mode():
        expected = plain_logits(tuned.eval(), tokens)
        found = plain_logits(engine.model, tokens)
        plain = plain_logits(load_engine(folder, dtype="float32").model, tokens)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_a_tokenizer_without_chat_template_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no chat template.*tokenizer\.chat_template = "):
        load_engine(tiny_model(tmp_path, chat_template=None))


def test_a_folder_without_a_model_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="could be loaded from"):
        load_engine(tmp_path)


def test_end_tokens_are_those_of_the_settings_and_of_the_chat_template(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    tiny_model(tmp_path)
    GenerationConfig(eos_token_id=[256, 5]).save_pretrained(tmp_path)
    assert load_engine(tmp_path).stops == {256, 5, 258}


def test_the_prompt_is_encoded_once_without_a_second_beginning(engine: Any) -> None:
    tokens = engine.encode([{"role": "user", "content": "Hi"}])
    assert engine.tokenizer.decode(tokens) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
