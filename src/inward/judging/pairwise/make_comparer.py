"""From the settings of a pairwise judge to what decides its battles: a model here or behind an endpoint, in text or by
probability, with the cache of verdicts before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from inward.config import EndpointSettings, PairwiseJudge
from inward.engines.engine import Engine
from inward.errors import UsageError
from inward.judging.pairwise.by_probability import ProbabilityComparer
from inward.judging.pairwise.by_text import LLMComparer, trial
from inward.judging.pairwise.cache import Cached
from inward.judging.pairwise.comparer import Chat, Comparer, LabelScorer
from inward.judging.pairwise.disarm import load_special_tokens, special_tokens_of
from inward.judging.pairwise.engine_chat import TURN_OPENING_TOKENS, EngineChat, EngineLabelScorer
from inward.judging.pairwise.replies import open_reasoning
from inward.models.identity import content_digest
from inward.models.names import config_folder, local_folder
from inward.records import content_id
from inward.storage import cache_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelHere:
    """The judge's model where it runs in this process: its name in the recipe, its folder and its tokenizer."""

    path: str
    folder: Path
    tokenizer: Any


def make_comparer(settings: PairwiseJudge, today: date) -> Comparer:
    """Return the comparer of a recipe, behind the cache of verdicts unless that is off. Raises `UsageError`.

    `today` is the date for a model here whose chat template writes one. Only comparers are cached: what one verdict of a
    language model costs, a reward model reads in a hundredth of the time, and its batches would be torn apart by a score here
    and there that is known already.
    """
    if settings.endpoint is not None:
        special_tokens = _tokens_of_endpoint(settings.endpoint)
        comparer, identity = _behind_endpoint(settings, settings.endpoint, special_tokens), _endpoint_identity(special_tokens)
    else:
        model = _model_here(settings, local_folder)
        comparer, identity = _with_model_here(settings, model, today), _model_identity(settings, model, today)
    return Cached(comparer, cache_dir() / "verdicts", identity=identity) if settings.cache else comparer


def check_comparer(settings: PairwiseJudge) -> None:
    """Look for the key or the model and try its chat template, without loading weights. Raises `UsageError`."""
    if settings.endpoint is not None:
        from inward.judging.pairwise import endpoint

        endpoint.check(settings.endpoint)
        _tokens_of_endpoint(settings.endpoint)
        return
    from inward.models.tokenizer import encode_chat, load_context

    model, by_text = _model_here(settings, config_folder), settings.verdict == "text"
    try:
        shortest = encode_chat(model.tokenizer, trial(settings.form, settings.turn, "reasoned" if by_text else "at once"))
    except UsageError as error:
        raise UsageError(f"judge.path {model.path!r}: {error}; for a judge that is judge.turn = 'user'") from error
    opening = open_reasoning(model.tokenizer.decode(list(shortest[-TURN_OPENING_TOKENS:])))
    if opening and not by_text:
        raise UsageError(
            f"the chat template of judge.path {model.path!r} has the model begin with reasoning ({opening.strip()}), so "
            "what it would write next is no verdict: set judge.verdict = 'text'"
        )
    context = load_context(model.folder, model.tokenizer, trust_remote_code=settings.trust_remote_code)
    if by_text and len(shortest) + settings.max_tokens >= context:
        raise UsageError(
            f"judge.max_tokens ({settings.max_tokens}) leaves no room for two answers in the context of judge.path "
            f"{model.path!r}: {context} tokens, of which the judge's task takes {len(shortest)}. Lower judge.max_tokens"
        )


def _model_here(settings: PairwiseJudge, fetch: Callable[..., Path]) -> _ModelHere:
    from inward.models.tokenizer import load_tokenizer

    assert settings.path is not None, "a pairwise judge has a model here or an endpoint"
    folder = fetch(settings.path, trust_remote_code=settings.trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=settings.trust_remote_code)
    return _ModelHere(path=settings.path, folder=folder, tokenizer=tokenizer)


def _with_model_here(settings: PairwiseJudge, model: _ModelHere, today: date) -> Comparer:
    from inward.engines.engine import Likelihood
    from inward.engines.load import load_engine

    trusted = settings.trust_remote_code
    engine: Engine = load_engine(model.folder, dtype=settings.dtype, rows=settings.rows, trust_remote_code=trusted, today=today)
    special_tokens = special_tokens_of(model.tokenizer)
    if settings.verdict == "text":
        return _by_text(settings, EngineChat(engine=engine, name=model.path, decode=model.tokenizer.decode), special_tokens)
    if not isinstance(engine, Likelihood):
        raise UsageError("judge.verdict = 'probability' needs an engine that says how likely a text is: use 'text'")
    return _by_probability(settings, EngineLabelScorer(engine=engine, name=model.path), special_tokens)


def _behind_endpoint(settings: PairwiseJudge, endpoint: EndpointSettings, special_tokens: frozenset[str]) -> Comparer:
    from inward.judging.pairwise.endpoint import EndpointChat
    from inward.judging.pairwise.endpoint_labels import EndpointLabelScorer

    chat = EndpointChat(endpoint)
    if settings.verdict == "text":
        return _by_text(settings, chat, special_tokens)
    return _by_probability(settings, EndpointLabelScorer(chat=chat), special_tokens)


def _by_text(settings: PairwiseJudge, chat: Chat, special_tokens: frozenset[str]) -> LLMComparer:
    return LLMComparer(
        chat=chat, form=settings.form, max_tokens=settings.max_tokens, turn=settings.turn, special_tokens=special_tokens
    )


def _by_probability(settings: PairwiseJudge, scorer: LabelScorer, special_tokens: frozenset[str]) -> ProbabilityComparer:
    return ProbabilityComparer(
        label_scorer=scorer,
        form=settings.form,
        turn=settings.turn,
        both_orders=settings.both_orders,
        special_tokens=special_tokens,
    )


def _tokens_of_endpoint(endpoint: EndpointSettings) -> frozenset[str]:
    """Return the special tokens of the tokenizer that is given for an endpoint, none where none is."""
    return frozenset() if endpoint.tokenizer is None else load_special_tokens(endpoint.tokenizer, "judge.endpoint.tokenizer")


def _endpoint_identity(special_tokens: frozenset[str]) -> str:
    """Return what outcomes depend on and a comparer's name does not say: what is set apart in a text before it is sent.

    Which model a server has behind a name only the server knows. That name and its address stand in the comparer's name.
    """
    return f"endpoint, {content_id(*sorted(special_tokens))} set apart" if special_tokens else "endpoint"


def _model_identity(settings: PairwiseJudge, model: _ModelHere, today: date) -> str:
    """Return what outcomes depend on and a comparer's name does not say: the model's content, and how it computes.

    A path can hold another model tomorrow.
    """
    from inward.hardware import device, resolve_dtype
    from inward.models.chat_template import reads_date

    computing_device = device()
    dtype = resolve_dtype(settings.dtype, computing_device)
    computed = f"{dtype} on {computing_device.type}, {settings.rows} rows"
    day = f", on {today.isoformat()}" if reads_date(model.tokenizer) else ""
    return f"{content_digest(model.folder)}, {computed}, own code {settings.trust_remote_code}{day}"
