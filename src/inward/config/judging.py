"""Judges, and how their scores become pairs."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from inward.config.base import Dtype, Settings, VerdictForm
from inward.thought import Turn


class EndpointSettings(Settings):
    """A model behind an OpenAI-compatible server: `base_url` is what its `/chat/completions` is appended to (`.../v1`).

    `key_env` names the environment variable that holds the key; the key itself stands nowhere. `retries` are those of one
    request, after the first try; `timeout_s` is for the whole of a try. Prices are per million tokens, read and written.
    """

    base_url: str
    model: str
    key_env: str | None = None
    concurrency: int = Field(default=16, gt=0)
    timeout_s: float = Field(default=300.0, gt=0.0)
    retries: int = Field(default=6, ge=0)
    price_in: float = Field(default=0.0, ge=0.0)
    price_out: float = Field(default=0.0, ge=0.0)

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        try:
            url = urlsplit(self.base_url)
            _ = url.port  # checked when it is read
        except ValueError as error:
            raise ValueError(f"endpoint.base_url is no address: {error}") from None
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("endpoint.base_url must begin with http:// or https:// and a host")
        if "@" in url.netloc or url.query or url.fragment:
            raise ValueError("endpoint.base_url holds more than scheme, host and path: a key belongs into endpoint.key_env")
        if self.key_env is not None and not self.key_env.isidentifier():
            raise ValueError("endpoint.key_env must be the name of an environment variable, never the key itself")
        return self


class VerifiableJudge(Settings):
    """Score = share of a prompt's constraints that the response meets, or 1/0 for an exact answer. No model."""

    kind: Literal["verifiable"]
    strictness: Literal["strict", "loose", "mean"] = "strict"

    @property
    def scores_shares(self) -> bool:
        """Whether scores go from 0 to 1, as those of every judge do that says so here."""
        return True


class RewardModelJudge(Settings):
    """Score = the number that a sequence-classification model gives, or several of its numbers by `objectives`.

    `objectives` are weights of what the model rates, by its label's name or its place ("0"): the score is their weighted sum.
    `output` "sigmoid" puts the score between 0 and 1. `input` says how prompt and response are shown: by the chat template,
    as a plain pair of texts, or ("auto") by the template where there is one. A pair longer than `max_tokens` is cut and
    counted. `trust_remote_code` runs code that comes with the model, which models with a head of their own need.
    `share_prompts` reads each prompt once for all its responses, where the model allows it.
    """

    kind: Literal["reward_model"]
    path: str
    dtype: Dtype = "auto"
    trust_remote_code: bool = False
    objectives: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default={})
    output: Literal["raw", "sigmoid"] = "raw"
    input: Literal["auto", "chat", "pair"] = "auto"
    share_prompts: bool = True
    max_tokens: int = Field(default=4096, gt=0)
    batch_tokens: int = Field(default=16384, gt=0)

    @property
    def scores_shares(self) -> bool:
        return self.output == "sigmoid"

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.objectives and not any(self.objectives.values()):
            raise ValueError("judge.objectives has no weight but 0, so that every score would be 0: give one of them a weight")
        return self


class PairwiseJudge(Settings):
    """A language model that compares two responses: the model at `path` in this process, or one behind `endpoint`.

    Scores are Bradley-Terry strengths, with a normal prior of precision `prior`, of the battles that `scheme` asks for: all,
    or only what it takes to know best and worst at `confidence` (unset: 0.87, or 0.92 with `both_orders`). `form` offers two
    verdicts, a tie too, or Arena-Hard's five levels. With `verdict` "text" the judge reasons first, and an answer longer than
    `max_tokens` is an error; "probability" has nothing written and takes the verdict whose tokens are likeliest, at a small
    part of the cost; `both_orders` then asks each battle the other way round as well and averages, so that no taste for a
    place is left. `turn` says where the task stands, for models without a system turn; `rows` answers are drawn or read side
    by side. `cache` keeps verdicts in `INWARD_CACHE`, for all runs. Such scores compare responses to one prompt from one model
    only, so `validation.judge` must name another judge.
    """

    kind: Literal["pairwise"]
    path: str | None = None
    endpoint: EndpointSettings | None = None
    dtype: Dtype = "auto"
    trust_remote_code: bool = False
    rows: int = Field(default=32, gt=0)
    form: VerdictForm = "ab"
    verdict: Literal["text", "probability"] = "text"
    both_orders: bool = False
    turn: Turn = "system"
    max_tokens: int = Field(default=2048, gt=0)
    scheme: Literal["adaptive", "full"] = "adaptive"
    confidence: float | None = Field(default=None, gt=0.0, lt=1.0)
    prior: float = Field(default=0.4, gt=0.0)
    cache: bool = True

    @property
    def scores_shares(self) -> bool:
        return False

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.path is None) == (self.endpoint is None):
            raise ValueError("judge.kind = 'pairwise' needs exactly one of judge.path (a model here) and judge.endpoint")
        if self.both_orders and self.verdict == "text":
            raise ValueError("judge.both_orders averages probabilities, so it needs judge.verdict = 'probability'")
        if self.endpoint is not None and self.verdict == "probability" and self.form == "arena":
            raise ValueError(
                "judge.verdict = 'probability' with judge.endpoint sees one token of the answer, which cannot tell the "
                "verdicts of judge.form = 'arena' apart: use judge.form = 'ab' or 'abc', or judge.verdict = 'text'"
            )
        return self


SingleJudge = Annotated[VerifiableJudge | RewardModelJudge | PairwiseJudge, Field(discriminator="kind")]
COMBINED = ("cascade", "panel", "routed")


def _one_prior(parts: dict[str, SingleJudge]) -> None:
    """Refuse battles of two priors: strengths are fitted afterwards, from the battles alone, under one."""
    priors = {key: part.prior for key, part in parts.items() if isinstance(part, PairwiseJudge)}
    if len(set(priors.values())) > 1:
        named = ", ".join(f"judge.{key}.prior = {prior:g}" for key, prior in priors.items())
        raise ValueError(f"{named}: the battles of one recipe are fitted under one prior; give both the same")


def _different(parts: dict[str, SingleJudge]) -> None:
    for (one, judge), (other, same) in combinations(parts.items(), 2):
        if judge == same:
            raise ValueError(f"judge.{one} and judge.{other} are the same judge: change or drop one")


class CascadeJudge(Settings):
    """A cheap judge, `first`, and a dear one, `then`, that judges the prompts on which the cheap one is unsure.

    It is sure where it scored every response, three at least, and where in s (N(score) less the length control) the best leads
    the next, and the last but one the worst, by `sure` or more: standard deviations of the prompt's scores. With K = 8 normal
    scores, 0.2 hands on two prompts in five. All verdicts on a prompt are those of one judge.
    """

    kind: Literal["cascade"]
    first: SingleJudge
    then: SingleJudge
    sure: float = Field(default=0.2, ge=0.0)

    @property
    def parts(self) -> dict[str, SingleJudge]:
        return {"first": self.first, "then": self.then}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _different(self.parts)
        _one_prior(self.parts)
        return self


class PanelJudge(Settings):
    """Several judges: a response's score is the mean over `members` of N(score), each normalised within the prompt.

    What one member left unscored is unscored. With rule "agree", so are all responses to a prompt of which some member does
    not put the best by that mean above the worst.
    """

    kind: Literal["panel"]
    members: tuple[SingleJudge, ...] = Field(min_length=2)
    rule: Literal["average", "agree"] = "average"

    @property
    def parts(self) -> dict[str, SingleJudge]:
        return {f"members.{n}": member for n, member in enumerate(self.members)}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _different(self.parts)
        return self


class Route(Settings):
    """Prompts of one `source` (a file's name, a dataset's path, "tasks"), or those with answers or constraints to check."""

    source: str | None = None
    verifiable: bool = False
    judge: SingleJudge

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.source is None) != self.verifiable:
            raise ValueError("each of judge.routes needs exactly one of source = '...' and verifiable = true")
        return self


class RoutedJudge(Settings):
    """Every prompt has the judge of the first of `routes` that takes it, else `otherwise`.

    A prompt that none takes is an error before anything runs, and so is a `source` of no prompt.
    """

    kind: Literal["routed"]
    routes: tuple[Route, ...] = Field(min_length=1)
    otherwise: SingleJudge | None = None

    @property
    def parts(self) -> dict[str, SingleJudge]:
        routes = {f"routes.{n}.judge": route.judge for n, route in enumerate(self.routes)}
        return routes | ({"otherwise": self.otherwise} if self.otherwise else {})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        rules: dict[tuple[str | None, bool], int] = {}
        for n, route in enumerate(self.routes):
            known = rules.setdefault((route.source, route.verifiable), n)
            if known != n:
                raise ValueError(f"judge.routes.{known} and judge.routes.{n} take the same prompts: drop one")
        _one_prior(self.parts)
        return self


CombinedJudge = CascadeJudge | PanelJudge | RoutedJudge
JudgeSettings = Annotated[
    VerifiableJudge | RewardModelJudge | PairwiseJudge | CascadeJudge | PanelJudge | RoutedJudge, Field(discriminator="kind")
]


class PairingSettings(Settings):
    """Scores to pairs. `rho` is the length control; `format_errors` the largest share of pairs with a malformed reject.

    `rho` is a number from 0 to 0.5, or "auto": the smallest of 0, 0.01, ... `rho_max` with which the chosen responses are on
    average no longer than the rejected ones. `thought_weight` is the same control of thoughts. `length` is the unit of both and
    of what an adaptive tournament and a cascade control for: characters, or tokens as the model sampled them.
    """

    rho: Annotated[float, Field(ge=0.0, le=0.5)] | Literal["auto"] = 0.0
    rho_max: float = Field(default=0.5, gt=0.0, le=0.5)
    thought_weight: float = Field(default=0.0, ge=0.0)
    length: Literal["characters", "tokens"] = "characters"
    format_errors: float = Field(default=0.1, ge=0.0, le=1.0)
    min_gap: float = Field(default=0.0, ge=0.0)
