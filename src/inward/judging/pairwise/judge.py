"""The pairwise judge: responses fight in a tournament, and the battles become scores.

`Pairwise` is a judge like any other; that its rulings name two responses is all a stage has to know. A response's score is its
Bradley-Terry strength among the responses to its prompt (`tournament.scores`). A battle without a verdict counts for nobody,
as in the paper, but it is kept as an error: a response of which no battle was decided has no score, never a middling one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from inward.config import PairwiseJudge
from inward.errors import UsageError
from inward.judging.judge import Group, Ruling
from inward.judging.pairwise.by_probability import ProbabilityComparer
from inward.judging.pairwise.by_text import LLMComparer, trial
from inward.judging.pairwise.cache import Cached
from inward.judging.pairwise.comparer import Comparer
from inward.judging.spending import Spending
from inward.judging.tournament.adaptive import CONFIDENCE, CONFIDENCE_IN_PAIRS, adaptive
from inward.judging.tournament.run import run_tournament
from inward.judging.tournament.schemes import full, in_pairs
from inward.judging.tournament.state import Scheme
from inward.models.identity import content_digest
from inward.models.names import local_folder
from inward.records import Prompt
from inward.storage import cache_dir

ALONE = "no other response to compare it with"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairwise:
    """A `Judge` that lets the different responses of each group fight over a comparer; `scheme` chooses the battles.

    Of equal responses the first in its group stands for all (`tournament`). Those without another to fight are unscored.
    """

    comparer: Comparer
    scheme: Scheme
    scheme_name: str

    @property
    def name(self) -> str:
        return f"{self.comparer.name}|{self.scheme_name}"

    def costs(self) -> Spending:
        return self.comparer.costs()

    def judge(self, groups: Sequence[Group]) -> list[list[Ruling]]:
        """Return the rulings on every battle fought, for all groups at once, so that the comparer gets large batches."""
        played = run_tournament(groups, self.comparer, self.scheme)
        return [ruled or _nothing_to_compare(group) for group, ruled in zip(groups, played, strict=True)]


def load(settings: PairwiseJudge, *, rho: float, today: date) -> Pairwise:
    """Return the pairwise judge of a recipe, its model loaded. Raises `UsageError` where it cannot be.

    `today` is the date for a model here whose chat template writes one.
    """
    comparer = _comparer(settings, today)
    if settings.scheme == "full":
        return Pairwise(comparer=comparer, scheme=full, scheme_name="full")
    paired = settings.both_orders
    confidence = settings.confidence or (CONFIDENCE_IN_PAIRS if paired else CONFIDENCE)
    scheme = adaptive(rho=rho, confidence=confidence, prior=settings.prior, paired=paired)
    name = f"adaptive:{confidence:g}:{rho:g}:{settings.prior:g}"
    return Pairwise(comparer=comparer, scheme=in_pairs(scheme) if paired else scheme, scheme_name=name)


def check(settings: PairwiseJudge, prompts: Iterable[Prompt]) -> None:
    """Look for the judge's key or model and try its chat template, without loading weights. Raises `UsageError`."""
    if settings.endpoint is not None:
        from inward.judging.pairwise import endpoint

        endpoint.check(settings.endpoint)
        return
    from inward.models.tokenizer import encode_chat, load_context, load_tokenizer

    assert settings.path is not None, "a pairwise judge has a model here or an endpoint"
    folder = local_folder(settings.path, trust_remote_code=settings.trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=settings.trust_remote_code)
    by_text = settings.verdict == "text"
    try:
        shortest = len(encode_chat(tokenizer, trial(settings.form, settings.turn, "reasoned" if by_text else "at once")))
    except UsageError as error:
        raise UsageError(f"judge.path {settings.path!r}: {error}; for a judge that is judge.turn = 'user'") from error
    context = load_context(folder, tokenizer, trust_remote_code=settings.trust_remote_code)
    if by_text and shortest + settings.max_tokens >= context:
        raise UsageError(
            f"judge.max_tokens ({settings.max_tokens}) leaves no room for two answers in the context of judge.path "
            f"{settings.path!r}: {context} tokens, of which the judge's task takes {shortest}. Lower judge.max_tokens"
        )


def _nothing_to_compare(group: Group) -> list[Ruling]:
    return [Ruling(first=index, unscored=ALONE) for index in range(len(group.responses))]


def _comparer(settings: PairwiseJudge, today: date) -> Comparer:
    """Return the comparer of a recipe, behind the cache of verdicts unless that is off.

    Only comparers are cached: what one verdict of a language model costs, a reward model reads in a hundredth of the time, and
    its batches would be torn apart by a score here and there that is known already.
    """
    folder = None if settings.path is None else local_folder(settings.path, trust_remote_code=settings.trust_remote_code)
    asked = _asking(settings, folder, today)
    if not settings.cache:
        return asked
    return Cached(asked, cache_dir() / "verdicts", identity=_identity(settings, folder, today))


def _identity(settings: PairwiseJudge, folder: Path | None, today: date) -> str:
    """Return what outcomes depend on and a comparer's name does not say: the content of a model here, and how it computes.

    A path can hold another model tomorrow. What a server has behind a model's name nobody but the server knows: that name
    and its address, which the comparer's name holds, are all there is.
    """
    if folder is None:
        return "endpoint"
    from inward.hardware import device, resolve_dtype
    from inward.models.chat_template import reads_date
    from inward.models.tokenizer import load_tokenizer

    where = device()
    computed = f"{resolve_dtype(settings.dtype, where)} on {where.type}, {settings.rows} rows"
    dated = reads_date(load_tokenizer(folder, trust_remote_code=settings.trust_remote_code))
    day = f", on {today.isoformat()}" if dated else ""
    return f"{content_digest(folder)}, {computed}, own code {settings.trust_remote_code}{day}"


def _asking(settings: PairwiseJudge, folder: Path | None, today: date) -> Comparer:
    form, turn, by_text = settings.form, settings.turn, settings.verdict == "text"
    if settings.endpoint is not None:
        from inward.judging.pairwise.endpoint import EndpointChat
        from inward.judging.pairwise.endpoint_labels import EndpointLabelScorer

        chat = EndpointChat(settings.endpoint)
        if by_text:
            return LLMComparer(chat=chat, form=form, max_tokens=settings.max_tokens, turn=turn)
        there = EndpointLabelScorer(chat=chat)
        return ProbabilityComparer(label_scorer=there, form=form, turn=turn, both_orders=settings.both_orders)
    from inward.engines.engine import Likelihood
    from inward.engines.load import load_engine
    from inward.judging.pairwise.engine_chat import EngineChat, EngineLabelScorer

    assert settings.path is not None, "a pairwise judge has a model here or an endpoint"
    assert folder is not None, "a model here has a folder"
    trusted = settings.trust_remote_code
    engine = load_engine(folder, dtype=settings.dtype, rows=settings.rows, trust_remote_code=trusted, today=today)
    if by_text:
        local = EngineChat(engine=engine, name=settings.path)
        return LLMComparer(chat=local, form=form, max_tokens=settings.max_tokens, turn=turn)
    if not isinstance(engine, Likelihood):
        raise UsageError("judge.verdict = 'probability' needs an engine that says how likely a text is: use 'text'")
    here = EngineLabelScorer(engine=engine, name=settings.path)
    return ProbabilityComparer(label_scorer=here, form=form, turn=turn, both_orders=settings.both_orders)
