"""A tiny random reward model, saved as an ordinary model folder, beside the tiny language models of `tests/tiny.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer


def tiny_reward_model(
    path: Path,
    *,
    labels: int = 1,
    names: Sequence[str] = (),
    pad: bool = True,
    context: int = 1024,
    chat_template: str | None = CHAT_TEMPLATE,
    **more: Any,
) -> Path:
    """Save a random fp32 Llama with a score head and its byte-level tokenizer; `pad` False leaves both without a pad token.

    `names` are those of its labels, `more` goes into the configuration.
    """
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer: Any = tiny_tokenizer(chat_template=chat_template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        num_labels=len(names) or labels,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id if pad else None,
        **more,
    )
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: place for place, name in enumerate(names)}
    if not pad:
        tokenizer.pad_token = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = LlamaForSequenceClassification(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
