"""Judges of one kind each, and how their scores become pairs. Judges made of judges are in `inward.config.combined`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from inward.config.base import Dtype, Harmless, Settings, VerdictForm, refuse_without_effect
from inward.config.endpoint import EndpointSettings
from inward.thought import Turn


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
            refuse_without_effect(self, ("rows", "dtype", "trust_remote_code"), f"{server}; it is for judge.path")
        if self.verdict == "probability":
            refuse_without_effect(
                self, ("max_tokens",), "judge.verdict = 'probability' has no text written; it is for judge.verdict = 'text'"
            )
        if self.scheme == "full":
            reason = "judge.scheme = 'full' asks for every battle; it is for judge.scheme = 'adaptive'"
            refuse_without_effect(self, ("confidence",), reason)
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
