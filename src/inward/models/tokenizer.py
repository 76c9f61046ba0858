"""A model's tokenizer and chat template: loading them, conversations to tokens, tokens to text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inward.errors import UsageError


def load_tokenizer(model_path: Path | str, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model. Raises `UsageError` if there is none or it has no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"no tokenizer could be loaded from {model_path}: {error}") from error
    if not tokenizer.chat_template:
        raise UsageError(
            f"the tokenizer of {model_path} has no chat template. Use an instruction-tuned model, or save one: "
            "tokenizer.chat_template = ...; tokenizer.save_pretrained(folder)"
        )
    return tokenizer


def load_context(model_path: Path | str, tokenizer: Any, *, trust_remote_code: bool = False) -> int:
    """Return a model's context in tokens without loading its weights. Raises `UsageError` if it has no usable config."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(model_path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UsageError(f"no model configuration could be loaded from {model_path}: {error}") from error
    return context_of(config, tokenizer)


def encode_chat(tokenizer: Any, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
    """Apply the chat template. Raises `UsageError` where the template refuses the turns, as some do a system turn."""
    from jinja2 import TemplateError

    try:
        # A template with a thinking mode of its own is told to leave it off: its thoughts would not be ours to hide.
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False, enable_thinking=False)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UsageError(
            f"the model's chat template refuses the turns {roles}: {error}. If it takes no system turn, use "
            "thought.turn = 'user' (in chat: leave out --system)"
        ) from error
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def plain_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of tokens without special ones and otherwise untouched: what `Completion.text` is."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def context_of(config: Any, tokenizer: Any) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length)


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the end tokens: those of the generation settings, and the one the chat template ends a reply with."""
    ends = model.generation_config.eos_token_id
    ids = {ends} if isinstance(ends, int) else set(ends or ())
    turn = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "<answer>"}]
    _, _, rest = tokenizer.apply_chat_template(turn, tokenize=False).rpartition("<answer>")
    after = tokenizer(rest.lstrip(), add_special_tokens=False).input_ids
    if after and after[0] in tokenizer.all_special_ids:
        ids.add(after[0])
    if not ids and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)
