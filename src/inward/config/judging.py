"""Judges of one kind each, and how their scores become pairs. Judges made of judges are in `inward.config.combined`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from inward.config.base import Dtype, Harmless, Settings, VerdictForm
from inward.thought import Turn

SENT_ALREADY = {
    "model": "endpoint.model",
    "messages": "the judge's own conversation",
    "stream": "the judge's own reading of whole answers",
    "n": "the judge's own reading of one answer",
    "max_tokens": "judge.max_tokens and endpoint.limit_name",
    "max_completion_tokens": "judge.max_tokens and endpoint.limit_name",
    "temperature": "endpoint.temperature",
    "logprobs": "judge.verdict",
    "top_logprobs": "judge.verdict",
}
"""Keys of a request that `extra_body` may not set, and what sets them."""


class JudgeFacts(Settings):
    """What can be known of a judge before it is made. Each kind says what differs from this."""

    @property
    def holds_model(self) -> bool:
        """Whether it holds a model in the process that judges: one to isolate, and to run several of."""
        return False

    @property
    def scale(self) -> tuple[float, float] | None:
        """The lowest and the highest score that it can give to any response to any prompt, None where there are none."""
        return None

    @property
    def lowest_score(self) -> float | None:
        """The lowest score that it can give, None where there is none (strengths in battle are unbounded too)."""
        return self.scale[0] if self.scale else None

    @property
    def battle_prior(self) -> float | None:
        """The prior of the strengths that its battles are fitted with, None where its verdicts are no battles."""
        return None

    @property
    def incomparable(self) -> str:
        """Why its scores compare no two models, or nothing where they do."""
        return ""

    @property
    def model_path(self) -> str | None:
        """The model whose content its scores depend on, where that is here."""
        return None

    @property
    def tokenizer_path(self) -> str | None:
        """The tokenizer that its verdicts depend on, where its model is not here."""
        return None

    @property
    def user_function(self) -> str | None:
        """The user's function that its scores depend on."""
        return None


class EndpointSettings(Settings):
    """A model behind an OpenAI-compatible server: `base_url` is what its `/chat/completions` is appended to (`.../v1`).

    `key_env` names the environment variable that holds the key; the key itself stands nowhere. `retries` are those of one
    request, after the first try; `timeout_s` is for the whole of a try. Prices are per million tokens, read and written.
    Some servers take other requests than most: `limit_name` is the name by which they take the limit on an answer's tokens,
    `temperature` "unset" leaves the temperature to them, and the table `extra_body` is added to each request (for example
    `{ reasoning_effort = "low" }`). `tokenizer` is the judge model's own, as a folder or a Hub name: its special tokens are set
    apart where they stand in a question or an answer, beside those that are known of common models.
    """

    base_url: str
    model: str
    key_env: Annotated[str | None, Harmless()] = None
    concurrency: Annotated[int, Harmless()] = Field(default=16, gt=0)
    timeout_s: Annotated[float, Harmless()] = Field(default=300.0, gt=0.0)
    retries: Annotated[int, Harmless()] = Field(default=6, ge=0)
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | Literal["unset"] = 0.0
    extra_body: dict[str, Any] = Field(default={})
    tokenizer: str | None = None
    price_in: Annotated[float, Harmless()] = Field(default=0.0, ge=0.0)
    price_out: Annotated[float, Harmless()] = Field(default=0.0, ge=0.0)

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

    @model_validator(mode="after")
    def _extra_body_adds_only(self) -> Self:
        for key in self.extra_body:
            if key in SENT_ALREADY:
                raise ValueError(f"endpoint.extra_body.{key} is set by {SENT_ALREADY[key]}: take it out of endpoint.extra_body")
            if key.lower().replace("-", "_") in ("api_key", "authorization"):
                raise ValueError(
                    f"endpoint.extra_body.{key} would store a key: name its environment variable in endpoint.key_env"
                )
        try:
            json.dumps(self.extra_body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"endpoint.extra_body cannot be written as JSON: {error}") from None
        return self


def _refuse(settings: Settings, keys: Sequence[str], reason: str) -> None:
    """Refuse keys that a recipe sets to something and that would have no effect.

    A key that is set to its default is let through: the configuration that a run stores holds all keys.
    """
    for key in keys:
        value = getattr(settings, key)
        if key in settings.model_fields_set and value != type(settings).model_fields[key].default:
            raise ValueError(f"judge.{key} has no effect, because {reason}. Leave judge.{key} out")


class VerifiableJudge(JudgeFacts):
    """Score = how far a response meets the demands of its prompt: every constraint is one, and an exact answer is one more.

    `require` "share" gives the share of the demands that are met, "all" gives 1 where all of them are met and else 0. A
    constraint that a response makes impossible to check counts as failed; one that could be checked on no response is dropped.
    `strictness` says how constraints are read: strictly, loosely (IFEval's variants of the response), or the mean of both. No
    model is needed.
    """

    kind: Literal["verifiable"]
    strictness: Literal["strict", "loose", "mean"] = "strict"
    require: Literal["share", "all"] = "share"

    @property
    def scale(self) -> tuple[float, float]:
        return 0.0, 1.0


class RewardModelJudge(JudgeFacts):
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
    def scale(self) -> tuple[float, float] | None:
        return (0.0, 1.0) if self.output == "sigmoid" else None

    @property
    def holds_model(self) -> bool:
        return True

    @property
    def model_path(self) -> str:
        return self.path

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.objectives and not any(self.objectives.values()):
            raise ValueError("judge.objectives has no weight but 0, so that every score would be 0: give one of them a weight")
        return self


class PairwiseJudge(JudgeFacts):
    """A language model that compares two responses: one in this process, or one behind `endpoint`.

    `path` is a folder, a GGUF file or a Hub name.

    Scores are Bradley-Terry strengths, with a normal prior of precision `prior`, of the battles that `scheme` asks for: all,
    or only what it takes to know best and worst at `confidence` (unset: 0.87, or 0.92 with `both_orders`). `form` offers two
    verdicts, a tie too, or Arena-Hard's five levels. With `verdict` "text" the judge reasons first, and an answer longer than
    `max_tokens` is an error; "probability" has nothing written and takes the verdict whose tokens are likeliest, at a small
    part of the cost; `both_orders` then asks each battle the other way round as well and averages, so that no taste for a
    place is left. `turn` says where the task stands, for models without a system turn; `rows` answers are drawn or read side
    by side. `cache` keeps verdicts in `INWARD_CACHE`, for all runs. Such scores compare responses to one prompt from one model
    only; models are compared by how often each wins against the same stored answers (`validation.baseline`).
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
    cache: Annotated[bool, Harmless()] = True

    @property
    def holds_model(self) -> bool:
        return self.path is not None

    @property
    def battle_prior(self) -> float:
        return self.prior

    @property
    def model_path(self) -> str | None:
        return self.path

    @property
    def tokenizer_path(self) -> str | None:
        return None if self.endpoint is None else self.endpoint.tokenizer

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        if self.endpoint is not None:
            server = "judge.endpoint is a model that runs elsewhere"
            _refuse(self, ("rows", "dtype", "trust_remote_code"), f"{server}; it is for judge.path")
        if self.verdict == "probability":
            _refuse(
                self, ("max_tokens",), "judge.verdict = 'probability' has no text written; it is for judge.verdict = 'text'"
            )
        if self.scheme == "full":
            reason = "judge.scheme = 'full' asks for every battle; it is for judge.scheme = 'adaptive'"
            _refuse(self, ("confidence",), reason)
        return self

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


class PythonJudge(JudgeFacts):
    """Score = what your own Python function gives: `function` is "file.py:name" or "package.module:name".

    It is called once a prompt, as `score(prompt, responses)`, and returns one item a response: a number, or None (or
    `Unscored("why")`) where there is no score. `prompt` is an `inward.records.Prompt`: its text, answers and constraints.

        from inward.judging.python import Unscored

        def score(prompt, responses):
            wanted = prompt.answers[0] if prompt.answers else ""
            return [rate(text, wanted) if text.strip() else Unscored("a blank response") for text in responses]

        def rate(text, wanted):
            brief = 1 - min(len(text.split()) / 200, 1)
            return 0.8 * (wanted.lower() in text.lower()) + 0.2 * brief

    `lowest` and `highest` state the range of its scores, which are then held to it: a response that breaks its format counts as
    `lowest` when models are compared. With `parallel` the function runs in `execution.workers` processes at once, for one that
    computes long or holds a model. A changed file is another judge, and a run is not continued with it.
    """

    kind: Literal["python"]
    function: str
    lowest: Annotated[float | None, Field(allow_inf_nan=False)] = None
    highest: Annotated[float | None, Field(allow_inf_nan=False)] = None
    parallel: Annotated[bool, Harmless()] = False

    @property
    def holds_model(self) -> bool:
        return self.parallel

    @property
    def lowest_score(self) -> float | None:
        return self.lowest

    @property
    def scale(self) -> tuple[float, float] | None:
        return None if self.lowest is None or self.highest is None else (self.lowest, self.highest)

    @property
    def user_function(self) -> str:
        return self.function

    @model_validator(mode="after")
    def _sound_range(self) -> Self:
        if self.lowest is not None and self.highest is not None and self.lowest >= self.highest:
            raise ValueError(f"judge.lowest ({self.lowest:g}) must be below judge.highest ({self.highest:g})")
        return self


Single = VerifiableJudge | RewardModelJudge | PairwiseJudge | PythonJudge
"""All kinds of judge but those made of others. A new kind joins here; `inward.judging.make` says what else it takes."""
SingleJudge = Annotated[Single, Field(discriminator="kind")]


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
