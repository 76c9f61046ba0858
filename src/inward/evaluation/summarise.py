"""Outputs and scores of one model to an `Evaluation`; two arms side by side; the choice of a checkpoint.

An output that still breaks its format after all tries has no response to score. It counts as the lowest score that the judge
can give, in every figure that models are compared by: a mean over responses alone could be raised by breaking the format on
hard prompts. That mean is kept beside it, as the metric `score_of_responses`. A judge without a lowest score (a reward model)
has nothing to count such an output as: it is passed over, and `unresolved` tells how many there are. What the *judge* could
not score is counted as `unscored` and never enters a mean.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from inward.config import ValidationSettings
from inward.errors import JudgeError
from inward.records import Evaluation, Output, Score, Verdict
from inward.statistics import PairedInterval, bootstrap_mean, paired_bootstrap

SCORE_OF_RESPONSES = "score_of_responses"


def evaluate(
    model: str,
    arm: str,
    outputs: Sequence[Output],
    scores: Sequence[Score],
    settings: ValidationSettings,
    *,
    verdicts: Sequence[Verdict] = (),
    lowest: float | None = None,
    seed: int = 0,
) -> Evaluation:
    """Return the figures of one model on one set of prompts; they do not depend on the order of the records.

    `lowest` is the lowest score that the judge can give (`JudgeFacts.lowest_score`), None where it has none: what an output
    without a response counts as. Every output needs its score record. Numbers and truth values in the verdicts' details become
    metrics `judge.<key>`: means over the verdicts that hold them. With nothing to take a mean of, `score` is None and the rest
    still holds.
    """
    assert outputs, "nothing to evaluate"
    value_of = {score.output_id: score.value for score in scores}
    by_prompt: dict[str, list[Output]] = defaultdict(list)
    for output in sorted(outputs, key=lambda output: (output.prompt_id, output.id)):
        by_prompt[output.prompt_id].append(output)
    of_responses = _means(by_prompt, lambda output: value_of[output.id])
    means = _means(by_prompt, lambda output: lowest if output.response is None else value_of[output.id])
    interval = bootstrap_mean(list(means.values()), resamples=settings.bootstrap, seed=seed) if means else None
    metrics = _details(verdicts)
    if lowest is not None and of_responses:
        metrics[SCORE_OF_RESPONSES] = fmean(of_responses.values())
    return Evaluation(
        model=model,
        arm=arm,
        prompts=len(by_prompt),
        outputs=len(outputs),
        score=interval.mean if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        unscored=sum(output.response is not None and value_of[output.id] is None for output in outputs),
        format_errors=fmean(output.tries > 1 or output.response is None for output in outputs),
        unresolved=fmean(output.response is None for output in outputs),
        thought_length=_mean_length([output.thought for output in outputs]),
        response_length=_mean_length([output.response for output in outputs]),
        score_by_prompt=means,
        metrics=metrics,
    )


def compare(thinking: Evaluation, direct: Evaluation, settings: ValidationSettings, *, seed: int = 0) -> PairedInterval:
    """Return thinking - direct over the prompts scored in both arms. Raises `UsageError` where there are none.

    A prompt without a score in one arm drops out: `left_out` says how many did. With a judge that has no lowest score a broken
    format does that too, to the gain of the arm that broke it.
    """
    return paired_bootstrap(thinking.score_by_prompt, direct.score_by_prompt, resamples=settings.bootstrap, seed=seed)


def choose(evaluations: Sequence[Evaluation]) -> int:
    """Return the position of the highest `score`, the earliest of equals. Raises `JudgeError` where none has a score."""
    scored = {index: score for index, evaluation in enumerate(evaluations) if (score := evaluation.score) is not None}
    if not scored:
        raise JudgeError(
            f"none of {len(evaluations)} evaluated checkpoints has a score. Look at `unresolved` (format never kept: raise "
            "validation.tries or set thought.scaffold) and `unscored` (the judge failed) in their evaluations."
        )
    return max(scored, key=scored.__getitem__)  # max keeps the first of equals


def _means(by_prompt: Mapping[str, list[Output]], value: Callable[[Output], float | None]) -> dict[str, float]:
    """Return the mean over each prompt's outputs that have a value; a prompt without any is left out."""
    values_of = {prompt: [v for output in outputs if (v := value(output)) is not None] for prompt, outputs in by_prompt.items()}
    return {prompt: fmean(values) for prompt, values in values_of.items() if values}


def _details(verdicts: Sequence[Verdict]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for verdict in sorted(verdicts, key=lambda verdict: verdict.id):
        for key, value in json.loads(verdict.detail).items():
            if isinstance(value, bool | int | float):
                values[f"judge.{key}"].append(float(value))
    return {key: fmean(values[key]) for key in sorted(values)}


def _mean_length(texts: Sequence[str | None]) -> float | None:
    lengths = [len(text) for text in texts if text is not None]
    return fmean(lengths) if lengths else None
