"""A tiny model as a GGUF file, as llama.cpp's converter writes a Llama with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def tiny_gguf(
    folder: Path,
    path: Path,
    *,
    quantise: str | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    architecture: str = "llama",
    extra: dict[str, Any] | None = None,
    without: str = "",
) -> Path:
    """Write the model of `folder` (`tiny.tiny_model`) to `path` and return `path`.

    Matrices are quantised as `quantise` names it, or kept in fp32. `extra` are more tensors; `without` is one to leave out.
    """
    import gguf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, architecture)
    _write_settings(writer, model.config)
    _write_tokenizer(writer, chat_template)
    tensors = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    for name, array in {_rename(name): _permuted(name, array, model.config) for name, array in tensors.items()}.items():
        if name == without:
            continue
        if quantise is None or array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            kind = gguf.GGMLQuantizationType[quantise]
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_settings(writer: Any, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: Any, chat_template: str | None) -> None:
    import gguf

    tokenizer = tiny_tokenizer()
    special = set(tokenizer.all_special_ids)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in range(len(tokenizer))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types(kinds)
    writer.add_token_scores([0.0] * len(tokenizer))  # in place of merges, of which there are none
    writer.add_eos_token_id(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    writer.add_bos_token_id(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _rename(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _permuted(name: str, array: Any, config: Any) -> Any:
    """Order the rows of queries and keys by their halves, as llama.cpp rotates them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((count for part, count in heads.items() if part in name), None)
    if count is None:
        return array
    rows = array.shape[0]
    return array.reshape(count, 2, rows // count // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape).copy()
