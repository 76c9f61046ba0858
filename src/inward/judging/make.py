"""The table of judges: from the settings of a judge to the judge, and what a recipe can know of it before it is made.

A new kind of judge takes
- a class of settings in `inward.config.judging`, which joins the union `Single` there and says of itself what differs from
  `JudgeFacts` (whether it holds a model, the range of its scores);
- one new file in this folder with a class that keeps the protocol `inward.judging.judge.Judge`, and two functions:
  `load(settings, *, rho, today)`, which returns it, and `check(settings, prompts)`, which raises what is amiss at next to no
  cost;
- one line in `JUDGES`, and one in the `JUDGES` of tests/contract/test_judges.py, which holds it to the protocol.

A judge of your own needs none of this: `kind = "python"`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any, Final, Protocol

from inward.config import CombinedJudge, JudgeSettings, PairwiseJudge
from inward.functions import named, user_function
from inward.judging.judge import Judge
from inward.models.identity import content_digest
from inward.models.names import local_folder
from inward.records import Prompt, content_id

JUDGES: Final[dict[str, str]] = {
    "verifiable": "inward.judging.verifiable.judge",
    "reward_model": "inward.judging.reward_model.judge",
    "pairwise": "inward.judging.pairwise.judge",
    "python": "inward.judging.python",
    "cascade": "inward.judging.combined.make",
    "panel": "inward.judging.combined.make",
    "routed": "inward.judging.combined.make",
}
"""The module of each kind of judge, with its `load` and `check`. It is imported where a recipe asks for the kind."""


class Load(Protocol):
    """Makes a judge. `rho` is the length control that the scores will meet, `today` the date for chat templates."""

    def __call__(self, settings: Any, *, rho: float, today: date) -> Judge: ...


class Check(Protocol):
    """Raises what `Load`, or the first judgement, would of a missing package, model, key or route, at next to no cost."""

    def __call__(self, settings: Any, prompts: Iterable[Prompt]) -> None: ...


def make_judge(settings: JudgeSettings, *, rho: float = 0.0, today: date | None = None) -> Judge:
    """Return the judge that a recipe asks for. A judge with a model loads it here, and a `UsageError` says what is amiss.

    `rho` is the length control that the scores will meet: an adaptive tournament asks what is needed to know its outcome, and
    a cascade whether the cheap judge knows it. `today` is the date for chat templates that write one: the present date unless
    given.
    """
    load: Load = named(f"{JUDGES[settings.kind]}:load")
    return load(settings, rho=rho, today=today or date.today())


def check_judge(settings: JudgeSettings, prompts: Iterable[Prompt]) -> None:
    """Raise what `make_judge` or its first judgement would of a missing package, model, key or route, at next to no cost."""
    check: Check = named(f"{JUDGES[settings.kind]}:check")
    check(settings, prompts)


def judge_contents(settings: JudgeSettings, key: str = "judge") -> dict[str, str]:
    """Return what a judge's scores depend on and its settings only name: a digest of each model and function, by its key.

    A run notes them, so that it is never continued with a judge whose model or function has changed. A model's files are read
    once each. What a server has behind a model's name only the server knows; of a tokenizer that is given for it, the special
    tokens count.
    """
    if isinstance(settings, CombinedJudge):
        contents: dict[str, str] = {}
        for name, part in settings.parts.items():
            contents |= judge_contents(part, f"{key}.{name}")
        return contents
    if settings.model_path is not None:
        folder = local_folder(settings.model_path, trust_remote_code=getattr(settings, "trust_remote_code", False))
        return {f"{key}.path": content_digest(folder)}
    if settings.user_function is not None:
        return {f"{key}.function": user_function(settings.user_function).digest}
    if settings.tokenizer_path is not None:
        from inward.judging.pairwise.disarm import load_special_tokens

        setting = f"{key}.endpoint.tokenizer"
        return {setting: content_id(*sorted(load_special_tokens(settings.tokenizer_path, setting)))}
    return {}


def in_both_orders(settings: PairwiseJudge) -> PairwiseJudge:
    """Return the pairwise judge that asks every battle in both orders, whatever its tournament would leave out."""
    return settings.model_copy(update={"scheme": "full", "confidence": None})
