"""A miniature of a model: its architecture with narrow layers and random weights, made from the configuration alone.

A miniature takes a fraction of a second to make and to run, and everything that decides how a model can be sampled and
trained is the same in it: which kinds of layers there are, masks, positions, caches, the head. Its windows and chunks are a
few tokens, so that a short text crosses them, and its weights are so large that a wrong mask changes every logit. What
cannot be known from it is what depends on real widths and weights: memory, speed, number formats.
"""

from __future__ import annotations

import copy
from typing import Any

MOST_NUMBERS = 8_000_000
"""Parameters that a miniature may have. One beyond it was not made small (a part that this module does not know)."""
VOCABULARY = 260
MOST_LAYERS = 8
SPREAD = 0.2
"""The standard deviation of the weights: with larger ones some architectures amplify rounding too much."""

_HIDDEN = (
    "attention_hidden_size d_model dim_model embedding_dim embedding_size hidden_size input_embedding_size lru_width "
    "moe_latent_size n_embd output_embedding_size word_embed_proj_dim"
)
_INNER = (
    "block_ff_dim decoder_ffn_dim dff dim_ff feed_forward_size feedforward_proj_dim ffn_dim ffn_hidden_size "
    "intermediate_size n_inner"
)
_EXPERT = (
    "dense_intermediate_size expert_ffn_hidden_size hidden_size_per_layer_input intermediate_size_mlp "
    "moe_intermediate_size moe_shared_expert_intermediate_size shared_expert_intermediate_size shared_intermediate_size"
)
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "multi_query_group_num", "swa_num_key_value_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks")
_HEAD_WIDTHS = (
    "attention_head_size d_head dim_head global_head_dim head_dim index_head_dim kv_channels kv_lora_rank linear_head_dim "
    "linear_key_head_dim linear_value_head_dim mamba_d_state o_lora_rank q_lora_rank qk_nope_head_dim ssm_state_size state_size"
)
_WIDTHS = {
    **dict.fromkeys(_HIDDEN.split(), 32),
    **dict.fromkeys(_INNER.split(), 48),
    **dict.fromkeys(_EXPERT.split(), 24),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_HEAD_WIDTHS.split(), 8),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads", "num_swa_attention_heads", "index_n_heads"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "mamba_dt_rank", "time_step_rank"), 4),
    **dict.fromkeys(("mamba_head_dim", "mamba_d_head", "mamba_headdim", "attention_head_dim"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "zero_expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "n_group", "topk_group", "num_expert_group", "linear_num_key_heads"), 2),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "attention_chunk_size"), 6),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 4),
    "qk_head_dim": 12,
    "v_head_dim": 10,
    "mamba_d_ssm": 64,
}
"""What is narrow in a miniature, where it is wider in the model."""


def miniature(config: Any, *, layers: int = MOST_LAYERS, **change: Any) -> Any | None:
    """Return a miniature model in float32, in evaluation mode, or None where none can be made from a configuration.

    It has one layer of each kind that the configuration lists, and at most `layers` where it lists none, unless kinds were
    lost by that. `change` are further values of its configuration. The global random state is left as it was.
    """
    for limit in (layers, None):
        small = _make(config, limit, change)
        if small is not None and _kinds(small.config) == _kinds(config):
            return small
    return None


def _make(config: Any, layers: int | None, change: dict[str, Any]) -> Any | None:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        small = type(config)(**(_narrow(copy.deepcopy(config).to_dict(), layers) | change))
        with torch.device("meta"):
            numbers = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(small).parameters())
        if numbers > MOST_NUMBERS:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()
            _strengthen(model)
        with torch.no_grad():
            model(torch.arange(1, 9)[None], use_cache=False)
    except Exception:  # noqa: BLE001 (any class of any architecture, given widths that its author never thought of)
        return None
    return model


def _kinds(config: Any) -> set[str]:
    """Return the kinds of layers that a configuration lists or works out."""
    return set(getattr(config.get_text_config(), "layer_types", None) or ())


def _strengthen(model: Any) -> None:
    """Draw matrices anew, so large that each token's state depends on all that it attends to; shift biases."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "A_log" not in name:
                parameter.normal_(std=SPREAD)
            elif name.endswith("bias") and "dt" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _narrow(values: dict[str, Any], layers: int | None) -> dict[str, Any]:
    """Return a configuration's values with all widths made small, and with fewer layers if `layers` is given."""
    for name in ("model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "quantization_config"):
        values.pop(name, None)
    heads = next((values[name] for name in _HEADS if isinstance(values.get(name), int)), None)
    rotary_heads = values.get("head_dim") is not None and values.get("head_dim") == values.get("qk_rope_head_dim")
    state_heads = isinstance(values.get("head_dim"), int) and {"expand", "num_heads"} <= set(values)
    doubled = 2 * (values.get("hidden_size") or 0) == values.get("attention_hidden_size")
    same_widths = values.get("v_head_dim") == values.get("qk_head_dim")
    if layers is not None:
        _cut_layers(values, layers)
    for name, value in values.items():
        if isinstance(value, dict) and name.endswith("config"):
            values[name] = _narrow_parts(value) if name == "per_layer_config" else _narrow(value, layers)
        elif isinstance(value, dict) and name.startswith("rope"):
            values[name] = _narrow_positions(value, values)
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif name in _KEY_HEADS:
            values[name] = 4 if value == heads else min(value, 2)
        elif name in _WIDTHS:
            values[name] = min(value, _WIDTHS[name])
        elif "vocab_size" in name:
            values[name] = min(value, VOCABULARY)
        elif name.endswith("token_id"):
            values[name] = min(value, VOCABULARY - 1)
    if rotary_heads:
        values["head_dim"] = values["qk_rope_head_dim"]
    if state_heads:
        values["head_dim"] = 16  # hidden_size * expand = num_heads * head_dim
    if doubled:
        values["attention_hidden_size"] = 2 * values["hidden_size"]
    if "mamba_d_ssm" in values:
        values["mamba_d_head"] = 16  # mamba_d_ssm = mamba_n_heads * mamba_d_head
    if same_widths and "v_head_dim" in values:
        values["v_head_dim"] = values["qk_head_dim"]
    return values


def _narrow_parts(parts: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Make small what layers have of their own, twice as wide as other layers are, so that layers still differ."""
    return {
        layer: {name: 2 * _WIDTHS[name] if name in _WIDTHS else value for name, value in part.items()}
        for layer, part in parts.items()
    }


def _narrow_positions(rope: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Shorten the lists that have one number for each pair of a head's rotated dimensions."""
    width = values.get("qk_rope_head_dim") or values.get("head_dim") or 8
    pairs = int(min(width, 8) * (rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0)) // 2
    shortened = {name: rope[name][:pairs] for name in ("short_factor", "long_factor") if rope.get(name)}
    return {
        name: _narrow_positions(part, values) if isinstance(part, dict) else part for name, part in rope.items()
    } | shortened


def _cut_layers(values: dict[str, Any], layers: int) -> None:
    """Keep the first layer of each kind, as the lists with an entry for each layer tell kinds apart; `layers` without lists."""
    count_name = next((name for name in _LAYERS if isinstance(values.get(name), int)), None)
    if count_name is None or values[count_name] <= 1:
        return
    count = values[count_name]
    lists = [name for name, value in values.items() if isinstance(value, list) and len(value) == count]
    parts = values.get("per_layer_config")
    kinds: dict[str, int] = {}
    for index in range(count):
        part = None if parts is None else parts.get(f"{index:02d}", parts.get(str(index), parts.get(index)))
        kinds.setdefault(repr(([values[name][index] for name in lists], part)), index)
    kept = sorted(kinds.values())
    if len(kept) == 1 or len(kept) > MOST_LAYERS:
        kept = list(range(min(count, layers if len(kept) == 1 else MOST_LAYERS)))
    for name in lists:
        values[name] = [values[name][index] for index in kept]
    if parts is not None:
        by_index = {int(index): part for index, part in parts.items()}
        values["per_layer_config"] = {new: by_index[old] for new, old in enumerate(kept) if old in by_index}
    for name in _LAYERS:
        if values.get(name) == count:
            values[name] = len(kept)
