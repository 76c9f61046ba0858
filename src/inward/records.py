"""The records that pass between rooms: Prompt, Output, Verdict, Score, Pair, Evaluation.

They are the only types that cross a boundary between stages. All are frozen, hold plain values only (so that they go to
Parquet and back unchanged), and name by id the records they came from: nothing is ever matched by position.

    Prompt -> Output (K a prompt) -> Verdict (one a judgement) -> Score (one an output) -> Pair (at most one a prompt)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Finish = Literal["stop", "length"]
PairKind = Literal["scored", "format_error"]


def content_id(*parts: str) -> str:
    """Return 16 hexadecimal digits that depend on every part and on where one part ends and the next begins."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """One checkable demand on a response: the name of a checker and its arguments as a JSON object."""

    id: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """An instruction x_i. `answers` and `constraints` are what a verifiable judge may check; both may be empty."""

    id: str
    text: str
    source: str
    answers: tuple[str, ...] = ()
    constraints: tuple[Constraint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One sampled output of a prompt: the token ids as sampled, and the thought z and response y they split into.

    `response` is None if and only if `format_error` names why: a name of `thought.FormatError`, among them `cut_off_response`
    for a response that the length limit (`finish` "length") cut off, where these are rejected. `written` marks with True the
    tokens that the engine wrote itself while scaffolding (same length as `tokens`). `tokens` holds the end-of-turn token where
    the model gave one. `tries` counts how often a format error was sampled again before this one (evaluation only). `logps` are
    the sampler's raw log-probabilities, nats, one a token, where the recipe needs them (`training.reference = "sampler"`).
    """

    id: str
    prompt_id: str
    index: int
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    written: tuple[bool, ...]
    text: str
    thought: str | None
    response: str | None
    format_error: str | None
    finish: Finish
    tries: int = 1
    logps: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge said of one response, or of `first` against `second` (a battle).

    `value` is None if and only if `unscored` says why. In a battle 1 means that `first` won, -1 `second`, 0 a tie.
    `detail` is a JSON object with whatever the judge can add (each constraint's result, the raw text of a verdict, ...).
    """

    id: str
    prompt_id: str
    judge: str
    first: str
    second: str | None
    value: float | None
    unscored: str | None
    detail: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The judge's score of one output, from its verdicts. `value` is None if and only if `unscored` says why."""

    output_id: str
    prompt_id: str
    value: float | None
    unscored: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The best output of a prompt against the worst. Scores are the judge's; `margin` is the length-controlled gap.

    A `format_error` pair's rejected output has no response and so no score: its score is None, and so is the margin.
    """

    id: str
    prompt_id: str
    kind: PairKind
    chosen_id: str
    rejected_id: str
    chosen_score: float
    rejected_score: float | None
    margin: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Figures of one model on one set of prompts, sampled fresh. Lengths are means in characters over the outputs.

    `score` is the mean over prompts of the mean score; `low` and `high` bound it (95% bootstrap over prompts). An output that
    still breaks its format counts as the judge's lowest score in all of these; where there is none it is passed over.
    `score_by_prompt` keeps each scored prompt's mean, so that any two models can be compared in pairs afterwards.
    `format_errors` is the share of first tries that broke the format; `unresolved` the share that still did at the end.
    """

    model: str
    arm: str
    prompts: int
    outputs: int
    score: float | None
    low: float | None
    high: float | None
    unscored: int
    format_errors: float
    unresolved: float
    thought_length: float | None
    response_length: float | None
    score_by_prompt: dict[str, float]
    metrics: dict[str, float]
