"""The embedded engine: any causal language model of `transformers`, on the processor or one CUDA device.

Every prompt is read once for all its samples; rows then decode together and are replaced as they finish (`decode`). The
keys of a prompt are held once for its samples where the architecture allows (`shared_prefix`), else in the model's own
cache (`padded`), which is logged. A model that neither decodes rightly is refused (`trial`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from inward.config import Dtype, EngineOptions
from inward.engines.engine import CLOSED, Abilities, Completion, Decoding, Progress, Request, Scaffold
from inward.engines.memory import ROWS, rows_that_fit
from inward.engines.row import Rules, check_lengths, make_rules
from inward.engines.transformers.decode import Decoder, decode
from inward.engines.transformers.likelihood import continuation_logps
from inward.engines.transformers.linear_layout import lay_out_linears
from inward.engines.transformers.logps import opening_logps
from inward.engines.transformers.padded import PaddedDecoder
from inward.engines.transformers.shared_prefix import NAME, SharedPrefixDecoder
from inward.engines.transformers.trial import require_decoder
from inward.errors import UsageError
from inward.hardware import device, free_memory, give_back_memory, resolve_dtype, set_up
from inward.models.size import cache_bytes
from inward.models.tokenizer import context_of, encode_chat, encode_text, load_tokenizer, plain_text, stop_tokens

log = logging.getLogger(__name__)

LATE = 4
"""Steps that a GPU may be ahead of the reading of its tokens (`decode`); no GPU has run this yet."""


@dataclass(slots=True, kw_only=True, eq=False)
class TransformersEngine:
    """An `Engine` over a model in this process; `load_engine` makes one. `rows` completions are drawn side by side.

    Without `rows` that is as many as the free memory of a GPU holds (untested: no GPU has run this yet), else `ROWS`.
    `model` is None while the engine is closed. `shared` says that the keys of a prompt are held once for its samples, as was
    found for the configuration `tried`. `today` is the date for chat templates that write one.
    """

    rows: int | None
    dtype: Dtype
    trust_remote_code: bool
    today: date = field(default_factory=date.today)
    model: Any = None
    tokenizer: Any = None
    context: int = 0
    stops: frozenset[int] = frozenset()
    shared: bool = False
    tried: dict[str, Any] | None = None

    @property
    def abilities(self) -> Abilities:
        return Abilities(logps=True, scaffolds=True, reload=True)

    def load(self, folder: Path | str, base: Path | None = None) -> None:
        """Take the model of a folder or Hub name, or the adapter there, merged in fp32 into `base`.

        Without `base` that is the model the adapter's settings name, by a path that may no longer hold. The new model is read
        before the held one is let go, so that a folder that cannot be loaded (UsageError) changes nothing. One that cannot be
        sampled rightly (UsageError) leaves the engine closed.
        """
        tokenizer = load_tokenizer(weights_folder(folder, base), trust_remote_code=self.trust_remote_code)
        target = device()
        model = load_model(folder, base, dtype=self.dtype, trust_remote_code=self.trust_remote_code)
        self.close()
        model = model.to(target).eval()
        with torch.inference_mode():
            lay_out_linears(model, self.rows or ROWS)
        self.context, self.stops = context_of(model.config, tokenizer), stop_tokens(model, tokenizer)
        self._choose_decoder(model, tokenizer, str(folder))
        self.model, self.tokenizer = model, tokenizer

    def _choose_decoder(self, model: Any, tokenizer: Any, name: str) -> None:
        """Set `shared`, and the attention that it takes. Other weights of the same architecture are not tried again."""
        architecture = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
        if architecture != self.tried:
            decoder, reasons = require_decoder(model, tokenizer, self.context)
            if decoder == "padded":
                log.warning("%s decodes through the slower padded cache: %s", name, reasons[0])
            self.shared, self.tried = decoder == "shared", architecture
        if self.shared:
            model.set_attn_implementation(NAME)

    def close(self) -> None:
        """Give back the model's memory: to the system on a processor, to this process on a GPU."""
        self.model = None
        give_back_memory()

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Apply the chat template with the generation prompt. The template writes all special tokens, and nothing else does."""
        return encode_chat(self.tokenizer, messages, today=self.today)

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

        Raises `UsageError` for a prompt that does not fit into the context, for a scaffold without room to respond, and where
        the engine is closed.
        """
        self._require_open()
        rules = make_rules(decoding, scaffold, stops=self.stops, encode=self.tokens, decode=self._text)
        check_lengths(requests, rules, self.context)
        decoder: Decoder = SharedPrefixDecoder(self.model, []) if self.shared else PaddedDecoder(self.model)
        on = self.model.device
        rows = decode(
            decoder,
            requests,
            rules,
            decoding,
            rows=self._rows(requests, rules),
            seed=seed,
            progress=progress,
            device=on,
            late=0 if on.type == "cpu" else LATE,
        )
        order = {request.id: index for index, request in enumerate(requests)}
        rows.sort(key=lambda row: (order[row.request_id], row.index))
        openings = opening_logps(self.model, requests, rules.opening) if decoding.logps else {}
        return [row.completion(openings.get(row.request_id)) for row in rows]

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that stands inside a turn, none of them special."""
        return encode_text(self.tokenizer, text)

    def logps(self, stems: Sequence[tuple[int, ...]], tails: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Return log P(tail | stem) for each stem and each tail (`likelihood`). Raises `UsageError` beyond the context."""
        self._require_open()
        longest = max(map(len, stems), default=0) + max(map(len, tails), default=0)
        if longest > self.context:
            raise UsageError(f"a text of {longest} tokens with its continuation exceeds the model's context of {self.context}")
        return continuation_logps(self.model, stems, tails, rows=self.rows or ROWS, share=self.shared)

    def _rows(self, requests: Sequence[Request], rules: Rules) -> int:
        """Return how many rows to draw side by side."""
        if self.rows is not None or self.model.device.type != "cuda":
            return self.rows or ROWS
        token = cache_bytes(self.model.config, self.model.dtype.itemsize)
        if token is None:
            return ROWS
        tokens = max((len(request.tokens) for request in requests), default=0) + rules.max_new_tokens
        vocabulary = self.model.get_input_embeddings().num_embeddings
        return rows_that_fit(free_memory(self.model.device), token=token, tokens=tokens, vocabulary=vocabulary)

    def _require_open(self) -> None:
        if self.model is None:
            raise UsageError(CLOSED)

    def _text(self, tokens: Sequence[int]) -> str:
        return plain_text(self.tokenizer, tokens)


def load_engine(
    model: Path | str,
    *,
    base: Path | None = None,
    dtype: Dtype = "auto",
    rows: int | None = None,
    trust_remote_code: bool = False,
    threads: int | None = None,
    today: date | None = None,
    options: EngineOptions | None = None,
) -> TransformersEngine:
    """Return an engine that holds the model of a folder or Hub name, as `TransformersEngine.load` takes it.

    `dtype` "auto" is bf16 where the device computes in it, else fp32. `today` is the present date unless given, and
    there are no `options`. Raises `UsageError` if the model cannot be loaded, or cannot be sampled rightly.
    """
    set_up(threads)
    engine = TransformersEngine(rows=rows, dtype=dtype, trust_remote_code=trust_remote_code, today=today or date.today())
    engine.load(model, base)
    return engine


def load_model(folder: Path | str, base: Path | None, *, dtype: Dtype, trust_remote_code: bool) -> Any:
    """Load the model of a folder or Hub name as `transformers` does, or the adapter there, merged in fp32 into `base`.

    Raises UsageError where it cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    path, number_format = weights_folder(folder, base), resolve_dtype(dtype, device())
    merged = path != str(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32 if merged else number_format, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UsageError(f"no causal language model could be loaded from {path}: {error}") from error
    if merged:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        _cast_weights(model, number_format)
    return model


def weights_folder(folder: Path | str, base: Path | None) -> str:
    """Return where the full weights and the tokenizer are: in `folder`, or for an adapter in `base` or what it names itself."""
    if not (Path(folder) / "adapter_config.json").is_file():
        return str(folder)
    return str(base or _base_of(str(folder)))


def _cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Put a model's weights into a number format, but nothing that is computed from its configuration.

    `Module.to(dtype)` would round those buffers as well: rotary frequencies in bf16 are off by up to 0.2%, which is a whole
    radian at position 500. `transformers` keeps them in fp32, and so does training.
    """
    stored = model.state_dict(keep_vars=True)
    for tensor in stored.values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def _base_of(path: str) -> str:
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base:
        raise UsageError(f"{path}/adapter_config.json does not name its base model (base_model_name_or_path)")
    return str(base)
