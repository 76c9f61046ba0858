"""A model's tokenizer and chat template: loading them, conversations to tokens, tokens to text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from inward.errors import UsageError
from inward.models.architectures import position_limit
from inward.models.chat_template import Messages, render
from inward.models.control_tokens import control_tokens, one_at_a_time

log = logging.getLogger(__name__)


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
    return context_of(load_config(model_path, trust_remote_code=trust_remote_code), tokenizer)


def load_config(model_path: Path | str, *, trust_remote_code: bool = False) -> Any:
    """Load a model's configuration. Raises `UsageError` if there is none that can be used."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(model_path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UsageError(f"no model configuration could be loaded from {model_path}: {error}") from error


def encode_chat(tokenizer: Any, messages: Messages, *, reply: bool = True, today: date | None = None) -> tuple[int, ...]:
    """Return the tokens of a conversation, with the beginning of the model's next turn where `reply` is true.

    Only the chat template writes special tokens; contents are text, whatever they spell out (`control_tokens`). `today` is
    the date for templates that write one: the present date unless given. Raises `UsageError` where the template refuses the
    turns, as some do a system turn.
    """
    return control_tokens(tokenizer).encode_chat(messages, partial(render, tokenizer, reply=reply, today=today))


def chat_text(tokenizer: Any, messages: Messages, *, reply: bool = True, today: date | None = None) -> str:
    """Return the text of a conversation as `encode_chat` encodes it: as the template writes contents that are only text."""
    return control_tokens(tokenizer).chat_text(messages, partial(render, tokenizer, reply=reply, today=today))


@one_at_a_time
def encode_text(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the tokens of a text of our own that stands inside a turn. A special token that it spells out is text.

    Other added tokens, such as a model's own "</think>", stay single tokens: the model writes them so.
    """
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def plain_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of tokens without special ones and otherwise untouched: what `Completion.text` is."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def context_of(config: Any, tokenizer: Any) -> int:
    """Return the longest text in tokens that a model is used for; less than it could take where its positions would depend
    on other texts (`position_limit`), which is logged.
    """
    context = int(getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length)
    limit = position_limit(config)
    if limit is None or limit >= context:
        return context
    log.warning(
        "the model is used for texts of at most %d tokens (original_max_position_embeddings of its configuration) instead of "
        "%d: beyond, the positions of a text depend on the longest text it is batched with. A prompt together with "
        "sampling.max_new_tokens must not exceed it",
        limit,
        context,
    )
    return limit


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the end tokens: those of the generation settings, and the one the chat template ends a reply with."""
    return _stop_tokens(model.generation_config, tokenizer)


def load_stop_tokens(model_path: Path | str, tokenizer: Any, *, trust_remote_code: bool = False) -> frozenset[int]:
    """Return a model's end tokens, as `stop_tokens`, without loading its weights. Raises `UsageError` without a config."""
    from transformers import GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(str(model_path))
    except (OSError, ValueError):  # then the model's own configuration says it, as it does when weights are loaded
        settings = GenerationConfig.from_model_config(load_config(model_path, trust_remote_code=trust_remote_code))
    return _stop_tokens(settings, tokenizer)


def _stop_tokens(generation: Any, tokenizer: Any) -> frozenset[int]:
    ends = generation.eos_token_id
    ids = {ends} if isinstance(ends, int) else set(ends or ())
    turn = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "<answer>"}]
    _, _, rest = tokenizer.apply_chat_template(turn, tokenize=False).rpartition("<answer>")
    after = tokenizer(rest.lstrip(), add_special_tokens=False).input_ids
    if after and after[0] in tokenizer.all_special_ids:
        ids.add(after[0])
    if not ids and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)
