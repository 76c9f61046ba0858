"""Outputs and scores of one model to an `Evaluation`; two arms side by side; the choice of a checkpoint.

Two figures for the score, because one of them can be gamed. `score` is the mean over prompts of what the judge gave to
their responses. An output that still breaks its format after all tries has no response, so `score` passes over it, and a
model that breaks its format on hard prompts would look better for it. The metric `score_unresolved_zero` therefore counts
such an output as the lowest score that the judge can give, 0. It exists for judges that have a lowest score; nothing
stands in for it where the judge has none. What the *judge* could not score is counted and enters neither figure.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from inward.config import ValidationSettings
from inward.errors import JudgeError
from inward.evaluation.bootstrap import PairedInterval, bootstrap_mean, paired_bootstrap
from inward.records import Evaluation, Output, Score, Verdict

UNRESOLVED_ZERO = "score_unresolved_zero"


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

    `lowest` is the lowest score that the judge can give (`inward.judging.lowest_score`), None where it has none. Every
    output needs its score record. Numbers and truth values in the verdicts' details become metrics `judge.<key>`: means over
    the verdicts that hold them. With nothing scored at all, `score` is None and the rest still holds.
    """
    assert outputs, "nothing to evaluate"
    value_of = {score.output_id: score.value for score in scores}
    by_prompt: dict[str, list[Output]] = defaultdict(list)
    for output in sorted(outputs, key=lambda output: (output.prompt_id, output.id)):
        by_prompt[output.prompt_id].append(output)
    means = _means(by_prompt, lambda output: value_of[output.id])
    interval = bootstrap_mean(list(means.values()), resamples=settings.bootstrap, seed=seed) if means else None
    metrics = _details(verdicts)
    if lowest is not None:
        floored = _means(by_prompt, lambda output: lowest if output.response is None else value_of[output.id])
        if floored:
            metrics[UNRESOLVED_ZERO] = fmean(floored.values())
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

    Prompts without any response in one arm drop out, to the gain of that arm: `left_out` says how many.
    """
    return paired_bootstrap(thinking.score_by_prompt, direct.score_by_prompt, resamples=settings.bootstrap, seed=seed)


def choose(evaluations: Sequence[Evaluation]) -> int:
    """Return the position of the best evaluation, the earliest of equals. Raises `JudgeError` where none has a score.

    The best is the one with the highest `score_unresolved_zero` where all have that metric, so that no checkpoint is
    chosen for breaking its format; otherwise the one with the highest `score`.
    """
    scored = [index for index, evaluation in enumerate(evaluations) if evaluation.score is not None]
    if not scored:
        raise JudgeError(
            f"none of {len(evaluations)} evaluated checkpoints has a score. Look at `unresolved` (format never kept: raise "
            "validation.tries or set thought.scaffold) and `unscored` (the judge failed) in their evaluations."
        )
    floored = all(UNRESOLVED_ZERO in evaluations[index].metrics for index in scored)
    return max(scored, key=lambda index: _figure(evaluations[index], floored))  # max keeps the first of equals


def _figure(evaluation: Evaluation, floored: bool) -> float:
    assert evaluation.score is not None
    return evaluation.metrics[UNRESOLVED_ZERO] if floored else evaluation.score


def _means(by_prompt: Mapping[str, list[Output]], value: Callable[[Output], float | None]) -> dict[str, float]:
    """Return the mean over each prompt's outputs that have a value; a prompt without any is left out."""
    found = {prompt: [v for output in outputs if (v := value(output)) is not None] for prompt, outputs in by_prompt.items()}
    return {prompt: fmean(values) for prompt, values in found.items() if values}


def _details(verdicts: Sequence[Verdict]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for verdict in sorted(verdicts, key=lambda verdict: verdict.id):
        for key, value in json.loads(verdict.detail).items():
            if isinstance(value, bool | int | float):
                found[f"judge.{key}"].append(float(value))
    return {key: fmean(found[key]) for key in sorted(found)}


def _mean_length(texts: Sequence[str | None]) -> float | None:
    lengths = [len(text) for text in texts if text is not None]
    return fmean(lengths) if lengths else None
