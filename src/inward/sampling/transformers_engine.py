"""The embedded engine: any causal language model of `transformers`, on the processor or one CUDA device.

Every prompt is read once for all its samples; rows then decode together and are replaced as they finish (`decode`). The
keys of a prompt are held once for its samples where the architecture allows (`shared_prefix`), else in the model's own
cache (`padded`), which is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inward.config import Dtype
from inward.errors import UsageError
from inward.hardware import device, resolve_dtype
from inward.sampling.decode import Decoder, decode
from inward.sampling.engine import Completion, Decoding, Progress, Request, Scaffold
from inward.sampling.likelihood import continuation_logps
from inward.sampling.logps import opening_logps
from inward.sampling.packed import pack
from inward.sampling.padded import PaddedDecoder
from inward.sampling.row import check_lengths, make_rules
from inward.sampling.shared_prefix import SharedPrefixDecoder, why_unsupported

log = logging.getLogger(__name__)
TRIAL = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersEngine:
    """An `Engine` over a loaded model; `load_engine` makes one. `rows` completions are drawn side by side."""

    model: Any
    tokenizer: Any
    rows: int
    context: int
    stops: frozenset[int]
    shared: bool
    gives_logps: bool = True

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Apply the chat template with the generation prompt. The template writes all special tokens, so none is added."""
        return encode_chat(self.tokenizer, messages)

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        *,
        seed: int,
        scaffold: Scaffold | None = None,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """Draw `k` completions of every request, ordered by request and index.

        Raises `UsageError` for a prompt that does not fit into the context and for a scaffold without room to respond.
        """
        rules = make_rules(decoding, scaffold, stops=self.stops, encode=self.tokens, decode=self._text)
        check_lengths(requests, rules, self.context)
        decoder: Decoder = SharedPrefixDecoder(self.model, []) if self.shared else PaddedDecoder(self.model)
        rows = decode(decoder, requests, rules, decoding, rows=self.rows, seed=seed, progress=progress)
        order = {request.id: at for at, request in enumerate(requests)}
        rows.sort(key=lambda row: (order[row.request_id], row.index))
        openings = opening_logps(self.model, requests, rules.opening) if decoding.logps else {}
        return [row.completion(openings.get(row.request_id)) for row in rows]

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that stands inside a turn, without special ones."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def logps(self, stems: Sequence[tuple[int, ...]], tails: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Return log P(tail | stem) for each stem and each tail (`likelihood`)."""
        return continuation_logps(self.model, stems, tails, rows=self.rows, share=self.shared)

    def _text(self, tokens: Sequence[int]) -> str:
        return plain_text(self.tokenizer, tokens)


def load_engine(
    model_path: Path | str,
    *,
    base: Path | None = None,
    dtype: Dtype = "auto",
    rows: int = 128,
    trust_remote_code: bool = False,
    threads: int | None = None,
) -> TransformersEngine:
    """Load a model folder or Hub name; a folder that holds a `peft` adapter is merged into its base in fp32 first.

    `base` is the model to merge an adapter into. Without it that is the one the adapter's settings name, by a path that may
    no longer hold. Only an adapter reads it.
    `dtype` "auto" is bf16 where the device computes in it, else fp32. Raises `UsageError` if the model cannot be loaded.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = device()
    adapter = str(model_path) if (Path(model_path) / "adapter_config.json").is_file() else None
    weights = str(model_path) if adapter is None else str(base or _base_of(adapter))
    tokenizer = load_tokenizer(weights, trust_remote_code=trust_remote_code)
    model = _load_model(weights, adapter, trust_remote_code).to(device=place, dtype=resolve_dtype(dtype, place)).eval()
    with torch.inference_mode():
        pack(model, rows)
        unsupported = why_unsupported(model, encode_chat(tokenizer, TRIAL))
    if unsupported:
        log.warning("%s decodes through the slower padded cache: %s", model_path, unsupported)
    return TransformersEngine(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        context=_context(model.config, tokenizer),
        stops=_stops(model, tokenizer),
        shared=unsupported is None,
    )


def plain_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of tokens without special ones and otherwise untouched: what `Completion.text` is."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


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
    return _context(config, tokenizer)


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


def _load_model(path: str, adapter: str | None, trust_remote_code: bool) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto" if adapter is None else torch.float32, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UsageError(f"no causal language model could be loaded from {path}: {error}") from error
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model


def _base_of(path: str) -> str:
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base:
        raise UsageError(f"{path}/adapter_config.json does not name its base model (base_model_name_or_path)")
    return str(base)


def _context(config: Any, tokenizer: Any) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length)


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
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
