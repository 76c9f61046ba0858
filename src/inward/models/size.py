"""How large a model is, told by its folder without loading a weight: parameters, bytes, and what a token takes in the cache."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from inward.models.architectures import config_value

BYTES_OF = {"float32": 4, "float64": 8}
"""Bytes of a number in the formats that are not of two bytes."""


def count_parameters(folder: Path, *, trust_remote_code: bool = False) -> int | None:
    """Return how many numbers the weights of a model folder hold: by the heads of its files, else by its configuration.

    A folder that holds a configuration alone has its model made without memory (the meta device). None where that cannot tell:
    an architecture that `transformers` does not know, or one that comes as code.
    """
    from safetensors import safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            total += sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118 (not a mapping)
    return total or _by_configuration(folder, trust_remote_code)


def stored_bytes(folder: Path, parameters: int, config: Any) -> int:
    """Return what the weights of a model folder take on a disk, where they are not there yet by the format of its config."""
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return weights or parameters * BYTES_OF.get(str(getattr(config, "dtype", None)).removeprefix("torch."), 2)


def cache_bytes(config: Any, size: int) -> int | None:
    """Return the bytes of the keys and values of one token in all layers, in a number format of `size` bytes.

    Layers that keep less (a sliding window, a state of fixed size) count as if they kept all. None where a configuration does
    not say how wide its heads are.
    """
    text = config.get_text_config()
    heads, width = attention_shape(text)
    layers, keys = whole_number(text, "num_hidden_layers"), whole_number(text, "num_key_value_heads") or heads
    return 2 * layers * keys * width * size if layers and keys and width else None


def attention_shape(config: Any) -> tuple[int | None, int | None]:
    """Return the number of query heads and the width of one, as far as a (text) configuration has one number for them."""
    heads, hidden = whole_number(config, "num_attention_heads"), whole_number(config, "hidden_size")
    width = config_value(config, "head_dim")
    if width is None and heads and hidden:
        return heads, hidden // heads
    return heads, whole_number(config, "head_dim")


def whole_number(config: Any, name: str) -> int | None:
    """Return a value of a configuration, or None where it has none, or another for each layer."""
    value = config_value(config, name)
    return value if isinstance(value, int) and value > 0 else None


def _by_configuration(folder: Path, trust_remote_code: bool) -> int | None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        scores = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
        kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
        with torch.device("meta"):
            model = kind.from_config(config)
    except (OSError, ValueError):  # no configuration, or one of an architecture that is code of its own
        return None
    total: int = sum(parameter.numel() for parameter in model.parameters())
    return total
