"""A measurement: what validation, `inward evaluate` and every benchmark are.

Its prompts are drawn fresh from a model, judged, and summed up as an `Evaluation`. A judge that scores each response by itself
needs nothing else. A pairwise judge compares each response with the baseline's answers to the same prompt, and the scores are
win rates (`win_rates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from inward.config import JudgeSettings, PairwiseJudge, ValidationSettings
from inward.errors import UsageError
from inward.evaluation.summarise import evaluate
from inward.evaluation.win_rates import Baseline, battles_against, contradictions, win_rates
from inward.judging.judge import Judge
from inward.judging.make import in_both_orders
from inward.judging.stage import judge_outputs, score_outputs
from inward.prompts.load import normalised
from inward.prompts.rows import file_rows
from inward.records import Evaluation, Output, Prompt, Score, Verdict
from inward.sampling.draws import Draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What models are measured by: `draws` of each of `prompts`, judged by `judge`, against `baseline` if that is pairwise.

    `baseline` is None if and only if the judge scores each response by itself. Its settings are those of a judge that can
    compare models (`JudgeFacts.incomparable` is empty).
    """

    prompts: tuple[Prompt, ...]
    draws: Draws
    judge: JudgeSettings
    baseline: Baseline | None = None

    def __post_init__(self) -> None:
        assert (self.baseline is not None) == needs_baseline(self.judge), "a pairwise judge has a baseline, and no other has"

    @property
    def asked_judge(self) -> JudgeSettings:
        """The judge as it is asked: a pairwise one in both orders, whatever its tournament would leave out."""
        return in_both_orders(self.judge) if isinstance(self.judge, PairwiseJudge) else self.judge

    @property
    def lowest_score(self) -> float | None:
        """What an output that breaks its format counts as: a battle that is lost, or the judge's lowest score, if any."""
        return self.judge.lowest_score if self.baseline is None else 0.0


def needs_baseline(judge: JudgeSettings) -> bool:
    """Return whether models can be compared by this judge only against a baseline's answers."""
    return isinstance(judge, PairwiseJudge)


def judge_measured(measurement: Measurement, outputs: Sequence[Output], judge: Judge) -> list[Verdict]:
    """Return the verdicts on a model's outputs, or on those of some of the prompts: what a shard of judging does.

    `judge` is made of `measurement.asked_judge`.
    """
    judged = {output.prompt_id for output in outputs}
    prompts = [prompt for prompt in measurement.prompts if prompt.id in judged]
    if measurement.baseline is None:
        return judge_outputs(prompts, outputs, judge)
    return battles_against(prompts, outputs, measurement.baseline, judge)


def score_measured(measurement: Measurement, outputs: Sequence[Output], verdicts: Sequence[Verdict]) -> list[Score]:
    """Return one score for every output, in the order of the outputs: its verdict's value, or its win rate."""
    if measurement.baseline is None:
        return score_outputs(outputs, verdicts)
    return win_rates(outputs, measurement.baseline, verdicts)


def evaluate_measured(
    measurement: Measurement,
    model: str,
    arm: str,
    outputs: Sequence[Output],
    verdicts: Sequence[Verdict],
    scores: Sequence[Score],
    settings: ValidationSettings,
) -> Evaluation:
    """Return the figures of a model from its outputs, their verdicts and `score_measured`.

    Against a baseline, prompts that it has no answer to are left out, for every model alike, and counted as the metric
    `win_rate.unanswered`; `win_rate.contradictions` is the share of decided battles in which the order alone decided.
    """
    lowest = measurement.lowest_score
    if measurement.baseline is None:
        return evaluate(model, arm, outputs, scores, settings, verdicts=verdicts, lowest=lowest)
    answered = [output for output in outputs if measurement.baseline.get(output.prompt_id)]
    if not answered:
        raise UsageError("the baseline has no answer to any of the prompts that models are compared on")
    evaluation = evaluate(model, arm, answered, scores, settings, lowest=lowest)
    unanswered = len({output.prompt_id for output in outputs} - {output.prompt_id for output in answered})
    metrics = evaluation.metrics | {"win_rate.unanswered": float(unanswered)}
    if (share := contradictions(verdicts)) is not None:
        metrics["win_rate.contradictions"] = share
    return replace(evaluation, metrics=metrics)


def read_baseline(path: str, prompts: Sequence[Prompt]) -> dict[str, tuple[str, ...]]:
    """Read `validation.baseline`: a JSON-lines or Parquet file with `prompt` and `response`, in any order of its rows.

    A prompt may have several responses. UsageError for what cannot be read and for prompts that have none.
    """
    id_of = {normalised(prompt.text): prompt.id for prompt in prompts}
    answers: dict[str, tuple[str, ...]] = {}
    for where, row in file_rows(path):
        prompt, response = row.get("prompt"), row.get("response")
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise UsageError(f"{where}: each row of validation.baseline needs a text as `prompt` and one as `response`")
        if prompt_id := id_of.get(normalised(prompt)):
            answers[prompt_id] = (*answers.get(prompt_id, ()), response)
    missing = [prompt for prompt in prompts if prompt.id not in answers]
    if missing:
        raise UsageError(
            f"validation.baseline = {path!r} has no answer to {len(missing)} of {len(prompts)} prompts; the first of them "
            f"begins {missing[0].text[:60]!r}. Add them, or leave validation.baseline out for the seed's own answers"
        )
    return answers
