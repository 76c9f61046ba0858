"""Folders of well-known shapes that hold a configuration and a tiny tokenizer, and no weights: enough to be reckoned with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import tiny_tokenizer

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""Llama 3 8B."""


def shape_only(path: Path, shape: dict[str, Any]) -> Path:
    """Write a folder with this configuration and return it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(shape))
    tiny_tokenizer().save_pretrained(path)
    return path
