"""How each family of `transformers` is sampled and trained, on miniatures with random weights, in float32.

For every family: the decision is the one listed here, so that a change of it shows; and by the way that was chosen, the logits
of every decoding step, the log-probabilities of training and their gradients are those of plain forward passes over one text
at a time. The references here share no code with the trials that decide.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from inward.engines.engine import Decoding, Request
from inward.engines.row import Rules
from inward.engines.transformers.decode import Decoder, decode
from inward.engines.transformers.padded import PaddedDecoder
from inward.engines.transformers.shared_prefix import NAME, SharedPrefixDecoder
from inward.models.miniature import miniature
from inward.training import attention
from inward.training.batches import collate
from inward.training.examples import Example
from inward.training.logps import token_logps
from inward.training.support import support_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about the oddities of its own default configurations

SHARED = """
apertus arcee axk1 bitnet cohere ctrl dbrx deepseek_v2 deepseek_v3 emu3 ernie4_5 ernie4_5_moe flex_olmo gemma glm glm4
glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neox granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe
hy_v3 hyperclovax internlm3 jais2 jetmoe llama longcat_flash minicpm3 minimax_m2 ministral3 mixtral nanochat olmo olmo2
olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open starcoder2 youtu
"""
"""Prompts are read once for all their outputs, in sampling and in training."""
PADDED = """
afmoe bailing_hybrid bamba biogpt bloom codegen cohere2 cwm deepseek_v32 doge dots1 exaone4 exaone_moe falcon falcon_h1
falcon_mamba gemma2 gemma3_text gemma4_text glm_moe_dsa gpt_neo gpt_neox_japanese gpt_oss gptj granite_swa granitemoehybrid
jamba kimi_linear laguna lfm2 lfm2_moe llama4_text mamba mamba2 mellum mimo_v2_flash ministral mistral mpt nemotron
nemotron_h olmo3 olmo_hybrid qwen3_5_text qwen3_next stablelm vaultgemma xglm zamba zamba2
"""
"""Windows, caps, sinks, position biases, recurrent layers, or attention that cannot be replaced."""
OTHERWISE: dict[str, tuple[str, str | None]] = {
    "diffllama": ("padded", "packed"),
    "modernbert-decoder": ("padded", "refused"),
    "deepseek_v4": ("refused", "padded"),
    "minimax": ("refused", "padded"),
    "openai-gpt": ("refused", "padded"),
    "rwkv": ("refused", "padded"),
    "recurrent_gemma": ("refused", None),  # its gates amplify rounding so much that a trial of training falls either way
    "xlstm": ("refused", "padded"),
    "bart": ("refused", "padded"),
    "bert": ("refused", "refused"),
    "cpmant": ("refused", "refused"),
    "roberta": ("refused", "refused"),
    "xlnet": ("refused", "refused"),
}
NOT_MADE = {
    "blt": "its patcher is a model beside it",
    "gemma3n_text": "layers that share keys are counted from the end",
    "reformer": "its sequences have one length",
    "xmod": "a language must be set",
}
"""Families of which no miniature can be made: they are decided by the trial on the loaded model alone."""
NOT_TRIED = """
aria_text axk2 beam bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert cohere2_moe
cohere_compass_text data2vec-text dots3_note dots3_note_text electra ernie flint fuyu gemma3 gemma3n gemma4 gemma4_assistant
gemma4_unified gemma4_unified_assistant gemma4_unified_text git got_ocr2 gpt-sw3 granitemoe_swa hrm_text hy_v4 inkling2_text
inkling_text iquestcoder kolibri1 lfm3 llama4 marian mbart megatron-bert minimax_m3_vl_text mllama moshi
moss_transcribe_diarize musicgen musicgen_melody mvp pegasus phi4_multimodal plbart prophetnet qwen3_5 qwen3_5_moe
qwen3_5_moe_text qwen4_exp qwen4_exp_text rembert roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta
xlm-roberta-xl zaya
"""
"""Encoders and parts of encoder-decoders like bart, bert and roberta, models of images or sound around a family that is listed,
families that are copies of a listed one, and some whose miniatures take seconds or lack something."""
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_v1_moe": {"head_dim": 64, "num_experts": 4, "moe_topk": 2},
    "jamba": {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16, "full_attn_idxs": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 64},
    "nemotron": {"head_dim": 64, "num_key_value_heads": 8},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": {"num_hidden_layers": 8},
    "zamba2": {"num_hidden_layers": 2, "layers_block_type": ["linear_attention", "hybrid"]},
}
"""What a default configuration lacks to be that of a real model."""
FAMILIES: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(SHARED.split(), ("shared", "packed")),
    **dict.fromkeys(PADDED.split(), ("padded", "padded")),
    **OTHERWISE,
}
PROMPTS = ((5, 40, 17, 9, 33, 8, 71, 12, 90, 6, 44), (23, 7, 8), (61, 15, 9, 9, 41, 10, 77))
NEW_TOKENS = 6


def config_of(family: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[family](**CHANGES.get(family, {}))


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recording:
    """A decoder that notes the text of each row and the logits of each step."""

    def __init__(self, inner: Decoder) -> None:
        self.inner, self.refillable, self.idle_share = inner, inner.refillable, inner.idle_share
        self.texts: list[list[int]] = []
        self.rows: list[int] = []
        self.steps: list[tuple[int, int, Tensor]] = []

    def admit(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        self.inner.admit(prompts, counts)
        for prompt, count in zip(prompts, counts, strict=True):
            for _ in range(count):
                self.rows.append(len(self.texts))
                self.texts.append(list(prompt[:-1]))

    def step(self, tokens_R: Tensor) -> Tensor:
        logits_RV = self.inner.step(tokens_R)
        for row, token, logits_V in zip(self.rows, tokens_R.tolist(), logits_RV, strict=True):
            self.steps.append((row, len(self.texts[row]), logits_V.float().clone()))
            self.texts[row].append(token)
        return logits_RV

    def keep(self, rows: Sequence[int]) -> list[int]:
        order = self.inner.keep(rows)
        self.rows = [self.rows[row] for row in order]
        return order


@torch.inference_mode()
def check_sampling(model: Any, sampling: str) -> None:
    """Draw from several prompts, with rows that end early and others that take their place."""
    usual = model.config._attn_implementation
    if sampling == "shared":
        model.set_attn_implementation(NAME)
    decoder = Recording(SharedPrefixDecoder(model, []) if sampling == "shared" else PaddedDecoder(model))
    requests = [Request(id=str(index), tokens=prompt, k=2) for index, prompt in enumerate(PROMPTS)]
    rules = Rules(stops=frozenset(range(0, 260, 7)), max_new_tokens=NEW_TOKENS, decode=str)
    decoding = Decoding(temperature=2.0, top_p=1.0)
    decode(decoder, requests, rules, decoding, rows=5, seed=1, progress=None, device=torch.device("cpu"))
    model.set_attn_implementation(usual)
    plain = [model(torch.tensor([text]), use_cache=False).logits[0].float() for text in decoder.texts]
    assert len(plain) == 6
    for row, place, logits_V in decoder.steps:
        torch.testing.assert_close(logits_V, plain[row][place], rtol=0, atol=2e-3 * float(plain[row].std()))


def pairs() -> list[Example]:
    generator = random.Random(7)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, 200) for _ in range(count))

    return [
        Example(
            pair_id=str(index),
            prompt_tokens=tokens(prompt),
            chosen_tokens=tokens(chosen),
            chosen_weights=(1.0,) * chosen,
            rejected_tokens=tokens(rejected),
            rejected_weights=(0.5,) * rejected,
        )
        for index, (prompt, chosen, rejected) in enumerate([(4, 11, 7), (12, 3, 9)])
    ]


def check_training(model: Any, training: str) -> None:
    """Compare log-probabilities, and the gradients of their weighted sum, with autograd through the model's own logits."""
    examples = pairs()
    rows = [(e.prompt_tokens, e.chosen_tokens, 1.0) for e in examples] + [
        (e.prompt_tokens, e.rejected_tokens, 0.5) for e in examples
    ]
    expected, total = [], torch.zeros(())
    for prompt, output, weight in rows:
        logits_TV = model(input_ids=torch.tensor([prompt + output]), use_cache=False).logits[0].float()
        logps_T = logits_TV.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(output)[:, None])[:, 0]
        expected.append(logps_T.detach())
        total = total + weight * logps_T.sum()
    total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    if training == "packed":
        model.set_attn_implementation(attention.NAME)
    batch = collate(examples, torch.device("cpu"), "shared" if training == "packed" else "padded")
    logps_N = token_logps(model, batch)
    logps = torch.cat(expected)
    torch.testing.assert_close(logps_N.detach(), logps, rtol=0, atol=0.01 * float(logps.std()))
    (batch.weights_N * logps_N).sum().backward()
    largest = max(float(gradient.norm()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert parameter.grad is not None, name
            assert float((parameter.grad - gradients[name]).norm()) < 0.01 * largest, name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_is_sampled_and_trained_as_listed_and_rightly(family: str) -> None:
    config = config_of(family)
    small, again = miniature(config, layers=2), miniature(config, layers=2)
    assert small is not None, "a miniature can be made"
    support = support_of(small, again)
    sampling, training = FAMILIES[family]
    assert (support.sampling, support.training) == (sampling, training or support.training), support.reasons
    assert all(support.reasons) or (support.sampling, support.training) == ("shared", "packed")
    if support.sampling != "refused":
        check_sampling(miniature(config, layers=2), support.sampling)
    if training not in ("refused", None):
        check_training(miniature(config, layers=2), support.training)


@pytest.mark.parametrize("family", sorted(NOT_MADE))
def test_of_some_no_miniature_can_be_made(family: str) -> None:
    assert miniature(config_of(family), layers=2) is None


def test_every_family_of_transformers_is_accounted_for() -> None:
    """A family that a new version of transformers brings belongs into one of the lists above."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    listed = [*FAMILIES, *NOT_MADE, *NOT_TRIED.split()]
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert len(FAMILIES) >= 60
