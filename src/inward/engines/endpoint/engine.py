"""The engine whose model runs behind one or many OpenAI-compatible servers. Tokens in, tokens out.

The tokenizer and the chat template are those of the model folder, which the servers have to see under the same path. Each
completion is a request of its own with a seed of its own, so that it is the same whichever server draws it and however often it
is asked for. Scaffolds are written here, between two requests (`phases`).

An adapter is merged into its base on disk: vLLM could apply it while it decodes, but would then draw from other numbers than
every other engine, for some adapters only, and on processors vLLM 0.32 stops for good where it scores a text beside other
requests with --enable-lora.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from inward.config import Dtype, EndpointEngineSettings, EngineOptions
from inward.engines.agreement import forward_logps, reference_tokens
from inward.engines.endpoint.client import PATIENT, Backoff, check_address
from inward.engines.endpoint.drawing import Batch, draw_all
from inward.engines.endpoint.fleet import Fleet, Target
from inward.engines.endpoint.pool import Offer
from inward.engines.endpoint.verify import Expected
from inward.engines.engine import CLOSED, Abilities, Completion, Decoding, Engine, Progress, Request, Scaffold
from inward.engines.merged import merged_folder
from inward.engines.row import check_lengths, make_rules
from inward.engines.transformers.engine import weights_folder
from inward.errors import UsageError
from inward.models.names import local_folder
from inward.models.tokenizer import (
    context_of,
    encode_chat,
    encode_text,
    load_config,
    load_stop_tokens,
    load_tokenizer,
    plain_text,
)

MIXED = "Fünf Äpfel – 五個蘋果, 3.14 + 2 = 5.14; def f(x): return x  # ok?"
"""A text on which tokenizers differ."""
SPARE_TOKENS = 16
"""Tokens that are drawn after the reference, or left free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is needed here of the model that the servers run. `context` is the longest text in tokens that they and it take."""

    tokenizer: Any
    stops: frozenset[int]
    context: int
    vocabulary: int


@dataclass(slots=True, kw_only=True, eq=False)
class EndpointEngine:
    """An `Engine` over servers; `load_engine` makes one. Several threads may ask it at once.

    `held` is None while the engine is closed. The servers go on running, with the model that they were given last. `kept` holds
    on to merged weights on disk, which a server that comes back has to read again.
    """

    fleet: Fleet
    dtype: Dtype
    trust_remote_code: bool
    today: date
    backoff: Backoff
    held: Held | None = None
    kept: ExitStack = field(default_factory=ExitStack)

    @property
    def context(self) -> int:
        return self._open().context

    @property
    def abilities(self) -> Abilities:
        """What all servers can do."""
        reload = all(server.offer.reload for server in self.fleet.servers if server.offer)
        return Abilities(logps=all(verified.raw for verified in self.fleet.verified.values()), scaffolds=True, reload=reload)

    def load(self, folder: Path | str, base: Path | None = None) -> None:
        """Have the servers take the model of a folder or Hub name, or the adapter there on `base`, and see that they run it.

        Raises UsageError where the folder holds no model, with the earlier one still held, where a server was set up wrongly
        when it is first looked at, and where the servers take no new weights; EngineError where none runs the model.
        """
        first = self.fleet.target is None
        if not first and not self.abilities.reload:
            raise UsageError("a server of sampling.endpoint takes no new weights: start it with VLLM_SERVER_DEV_MODE=1")
        trusted = self.trust_remote_code
        source = Path(weights_folder(folder, base))
        source = (source if source.is_dir() else local_folder(str(source))).resolve()
        tokenizer = load_tokenizer(source, trust_remote_code=trusted)
        config = load_config(source, trust_remote_code=trusted)
        context, vocabulary = context_of(config, tokenizer), int(config.get_text_config().vocab_size)
        stops = load_stop_tokens(source, tokenizer, trust_remote_code=trusted)
        reference = reference_tokens(tokenizer, self.today)[: context - SPARE_TOKENS]
        with ExitStack() as stack:
            weights = source
            if weights_folder(folder, base) != str(folder):
                merged = merged_folder(folder, source, dtype=self.dtype, trust_remote_code=trusted, within=Path(folder))
                weights = stack.enter_context(merged)  # beside the adapter, where the servers see it too
                weights.chmod(0o755)  # for servers of other users
            here = None
            if self.fleet.settings.check_weights:
                here = forward_logps(weights, None, reference, dtype=self.dtype, trust_remote_code=trusted)
            target = Target(
                weights=weights,
                expected=Expected(reference=reference, here=here, vocabulary=vocabulary),
                text=(MIXED, encode_text(tokenizer, MIXED)),
            )
            (self.fleet.start if first else self.fleet.take)(target)
            self.kept.close()  # nobody reads the earlier merged weights any more
            self.kept = stack.pop_all()
        limits = [verified.context for verified in self.fleet.verified.values() if verified.context is not None]
        self.held = Held(tokenizer=tokenizer, stops=stops, context=min([context, *limits]), vocabulary=vocabulary)

    def close(self) -> None:
        """Ask the servers nothing more until `load`."""
        self.held = None
        self.fleet.rest()
        self.kept.close()

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Apply the chat template with the generation prompt. The template writes all special tokens, and nothing else does."""
        return encode_chat(self._open().tokenizer, messages, today=self.today)

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        *,
        seed: int,
        scaffold: Scaffold | None = None,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """Return every request's `k` completions, ordered by request and index. `progress` is called from another thread.

        Raises UsageError for a prompt that does not fit, a scaffold without room to respond, and log-probabilities of servers
        that give tempered ones; EngineError where no server is left, or a request keeps failing.
        """
        held = self._open()
        if decoding.logps and not self.abilities.logps:
            raise UsageError(
                "the servers of sampling.endpoint give no probabilities that are raw: start vLLM with --logprobs-mode "
                "raw_logprobs, or leave training.reference out"
            )
        rules = make_rules(
            decoding,
            scaffold,
            stops=held.stops,
            encode=lambda text: encode_text(held.tokenizer, text),
            decode=lambda tokens: plain_text(held.tokenizer, tokens),
        )
        check_lengths(requests, rules, held.context)
        if not requests:
            return []
        batch = Batch(
            fleet=self.fleet,
            rules=rules,
            decoding=decoding,
            seed=seed,
            vocabulary=held.vocabulary,
            backoff=self.backoff,
            progress=progress,
        )
        return self.fleet.run(lambda session: draw_all(session, requests, batch))

    def _open(self) -> Held:
        if self.held is None:
            raise UsageError(CLOSED)
        return self.held


def load_engine(
    model: Path | str,
    *,
    base: Path | None = None,
    dtype: Dtype = "auto",
    rows: int = 128,
    trust_remote_code: bool = False,
    today: date | None = None,
    options: EngineOptions | None = None,
    backoff: Backoff = PATIENT,
) -> EndpointEngine:
    """Return an engine whose servers run the model of a folder or Hub name, as `EndpointEngine.load` has them take it.

    `options` are the servers; `rows` is for models that are run here. Raises UsageError for a server that is set up wrongly.
    """
    if not isinstance(options, EndpointEngineSettings):
        raise UsageError("engine 'endpoint' needs the addresses of its servers: sampling.endpoint.servers")
    for address in options.servers:
        check_address(address, "sampling.endpoint.servers")
    engine = EndpointEngine(
        fleet=Fleet(options, backoff),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        today=today or date.today(),
        backoff=backoff,
    )
    engine.load(model, base)
    return engine


def check_servers(settings: EndpointEngineSettings, model: Path, *, trust_remote_code: bool, today: date) -> None:
    """Raise UsageError for a server from which no run could draw. Nothing is given to it, and no weights are compared."""
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    fleet = Fleet(settings, PATIENT)
    fleet.look((MIXED, encode_text(tokenizer, MIXED)), reference_tokens(tokenizer, today))
    _require_reload([server.offer for server in fleet.servers])


def require_new_weights(engine: Engine) -> None:
    """Raise UsageError where servers could not draw from what a run will train."""
    assert isinstance(engine, EndpointEngine), "it was made for sampling.engine = 'endpoint'"
    _require_reload([server.offer for server in engine.fleet.servers])


def _require_reload(offers: Sequence[Offer | None]) -> None:
    if not all(offer.reload for offer in offers if offer):
        raise UsageError(
            "a server of sampling.endpoint takes no new weights, so it could draw from the first model only: start vLLM with "
            "VLLM_SERVER_DEV_MODE=1 in its environment"
        )
