"""The engine for GPUs: vLLM, with our own chat templates, scaffolds and seeds. Tokens go in, tokens come out.

New weights go into the vLLM that is there where their configuration is the same. Another configuration starts it anew, and so
does the one case in which vLLM is known to keep old weights (`why_not_reload`); both are logged. A reload that silently keeps
old weights draws fluent text: so whatever was loaded is compared with a forward pass of the same folder by `transformers`
(`agreement`), on the processor, so that no GPU has to hold a model twice.

An adapter is merged in fp32 into its base, in a folder that goes when vLLM has read it. vLLM could apply adapters while it
decodes, but then it would draw from other numbers than every other engine and the evaluation of the merged model do, only for
some kinds of adapters and up to a rank that is set at its start, and more slowly with every token. The price is one more copy
of the weights on disk for the time of a reload.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from inward.config import Dtype, EngineOptions, VllmSettings
from inward.engines.agreement import Reading, disagreement, forward_logps, reference_tokens
from inward.engines.engine import CLOSED, Abilities, Completion, Decoding, Progress, Request, Scaffold
from inward.engines.merged import merged_folder
from inward.engines.row import check_lengths, make_rules
from inward.engines.transformers.engine import weights_folder
from inward.engines.vllm.draw import draw, prompt_logps
from inward.engines.vllm.start import Start, clean_up, end, reload, require_vllm, start, why_not_reload
from inward.errors import InwardError, UsageError
from inward.hardware import device, resolve_dtype, set_up
from inward.models.tokenizer import (
    context_of,
    encode_chat,
    encode_text,
    load_config,
    load_stop_tokens,
    load_tokenizer,
    plain_text,
)

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class VllmEngine:
    """An `Engine` over vLLM in this process; `load_engine` makes one. `rows` completions are drawn side by side.

    `llm` is vLLM itself, None until it is started and after it has ended; `asleep` says that it has dropped weights and keys
    and waits for others. `architecture` is the configuration that it was started with, and `reading` what the held weights gave
    to the tokens of a `reference` text. `today` is the date for chat templates that write one.
    """

    rows: int
    dtype: Dtype
    trust_remote_code: bool
    settings: VllmSettings
    today: date = field(default_factory=date.today)
    llm: Any = None
    asleep: bool = False
    architecture: dict[str, Any] | None = None
    tokenizer: Any = None
    context: int = 0
    stops: frozenset[int] = frozenset()
    reference: tuple[int, ...] = ()
    reading: Reading | None = None

    @property
    def abilities(self) -> Abilities:
        return Abilities(logps=True, scaffolds=True, reload=True)

    def load(self, folder: Path | str, base: Path | None = None) -> None:
        """Take the model of a folder or Hub name, or the adapter there, merged in fp32 into `base`.

        Without `base` that is the model the adapter's settings name. A folder that cannot be loaded (UsageError) changes
        nothing. Raises UsageError where vLLM does not take the model, and InwardError where what it then runs are not these
        weights; the engine is closed in both cases.
        """
        weights = weights_folder(folder, base)
        tokenizer = load_tokenizer(weights, trust_remote_code=self.trust_remote_code)
        config = load_config(weights, trust_remote_code=self.trust_remote_code)
        stops = load_stop_tokens(weights, tokenizer, trust_remote_code=self.trust_remote_code)
        context = context_of(config, tokenizer)
        reference = reference_tokens(tokenizer, self.today)[: context - 1]
        with self._whole(folder, base) as path:
            here = forward_logps(
                path, None, reference, dtype=self.dtype, trust_remote_code=self.trust_remote_code, on_processor=True
            )
            before = self.reading if reference == self.reference else None
            if self._take_weights(path, config, context):
                before = None
        self.tokenizer, self.stops, self.context, self.reference = tokenizer, stops, context, reference
        try:
            self.reading = Reading(there=prompt_logps(self.llm.llm_engine, reference), here=here)
        except InwardError as error:
            self._end()
            raise UsageError(f"vLLM cannot run the model {folder}: {error}. Choose sampling.engine = 'transformers'") from error
        if problem := disagreement(self.reading, before):
            self._end()
            raise InwardError(
                f"vLLM does not run the weights of {folder}: {problem}. Nothing is drawn from them. Try another version of "
                "vLLM, or sampling.engine = 'transformers'"
            )

    def _take_weights(self, path: Path | str, config: Any, context: int) -> bool:
        """Have vLLM read the weights of a folder; say whether it was started for that."""
        architecture = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
        try:
            reason = why_not_reload(config) if architecture == self.architecture else "its configuration is another one"
            if self.llm is not None and reason is None:
                reload(self.llm, path, asleep=self.asleep)
                self.asleep = False
                return False
            if self.llm is not None:
                log.warning("vLLM is started anew for %s, which takes longer than new weights alone: %s", path, reason)
                self._end()
            how = Start(
                context=context,
                rows=self.rows,
                dtype=resolve_dtype(self.dtype, device()),
                trust_remote_code=self.trust_remote_code,
                settings=self.settings,
            )
            self.llm, self.architecture = start(path, config, how), architecture
        except BaseException:  # what vLLM now holds is neither model
            self._end()
            raise
        return True

    @contextmanager
    def _whole(self, folder: Path | str, base: Path | None) -> Iterator[Path | str]:
        """Give a folder with full weights for the length of the block: the one asked for, or a merged copy of an adapter."""
        if weights_folder(folder, base) == str(folder):
            yield folder
            return
        with merged_folder(folder, base, dtype=self.dtype, trust_remote_code=self.trust_remote_code) as merged:
            yield merged

    def close(self) -> None:
        """Give back the model's memory. On GPUs vLLM sleeps on, without weights and keys, so that the next `load` is fast."""
        if self.llm is None or self.asleep:
            return
        if device().type == "cuda":
            self.llm.sleep(level=2)
            self.asleep = True
        else:
            self._end()

    def _end(self) -> None:
        """End vLLM itself."""
        if self.llm is None:
            return
        end(self.llm)
        self.llm, self.asleep, self.architecture, self.reading = None, False, None, None
        clean_up()

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Apply the chat template with the generation prompt. The template writes all special tokens, and nothing else does."""
        return encode_chat(self.tokenizer, messages, today=self.today)

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

        Raises UsageError for a prompt that does not fit into the context, for a scaffold without room to respond, for a
        temperature that vLLM does not take (above 2), and where the engine is closed.
        """
        if self.llm is None or self.asleep:
            raise UsageError(CLOSED)
        rules = make_rules(decoding, scaffold, stops=self.stops, encode=self.tokens, decode=self._text)
        check_lengths(requests, rules, self.context)
        return draw(self.llm.llm_engine, requests, rules, decoding, rows=self.rows, seed=seed, progress=progress)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that stands inside a turn, none of them special."""
        return encode_text(self.tokenizer, text)

    def _text(self, tokens: Sequence[int]) -> str:
        return plain_text(self.tokenizer, tokens)


def load_engine(
    model: Path | str,
    *,
    base: Path | None = None,
    dtype: Dtype = "auto",
    rows: int = 128,
    trust_remote_code: bool = False,
    today: date | None = None,
    options: EngineOptions | None = None,
) -> VllmEngine:
    """Return an engine that holds the model of a folder or Hub name, as `VllmEngine.load` takes it.

    `options` are the settings of `sampling.vllm`. Raises MissingExtraError without the package, and what `load` raises.
    """
    require_vllm()
    set_up()
    settings = VllmSettings() if options is None else options
    assert isinstance(settings, VllmSettings), "the options of another engine"
    engine = VllmEngine(
        rows=rows, dtype=dtype, trust_remote_code=trust_remote_code, settings=settings, today=today or date.today()
    )
    engine.load(model, base)
    return engine
