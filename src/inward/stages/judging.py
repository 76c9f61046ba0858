"""Outputs to verdicts to scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.config import CombinedJudge, JudgeSettings, Recipe
from inward.execution.choose import count_workers
from inward.execution.cut import cut
from inward.execution.task import Advance, Needs, Resource, Task, count_one
from inward.records import Output, Prompt, Score, Verdict, content_id
from inward.stages.lengths import measure_of
from inward.stages.run import ArmIteration
from inward.stages.set_up import set_up
from inward.storage import write_json

if TYPE_CHECKING:
    from inward.evaluation.measurement import Measurement
    from inward.judging.judge import Judge
    from inward.sampling.lengths import Measure

SHARDS_AT_ONCE = 4
"""Shards that are judged at the same time where the judge waits for a server: the late rounds of one tournament ask little,
and those of the others fill the gaps."""


def judge(now: ArmIteration, prompts: Sequence[Prompt], outputs: Sequence[Output], model: Path) -> list[Verdict]:
    """Have the responses judged, whole groups of K together; `judges.json` says on how many prompts each of several ruled."""
    from inward.judging.stage import rulers

    settings = now.run.recipe.judge
    measure = measure_of(now, model)
    verdicts = judge_outputs(now, now.folder / "verdicts", prompts, outputs, settings, stage="verdicts", measure=measure)
    if isinstance(settings, CombinedJudge):
        write_json(now.folder / "judges.json", rulers(verdicts))
    return verdicts


def score(now: ArmIteration, outputs: Sequence[Output], verdicts: Sequence[Verdict]) -> list[Score]:
    """Turn verdicts into one score an output. Stops the run where nothing was scored, or where the judge is broken."""
    from inward.judging.stage import require_some_scores, score_outputs
    from inward.trust.limits import check_limits

    recipe = now.run.recipe
    work = partial(score_outputs, outputs, prior=recipe.judge.battle_prior)
    scores = now.complete_at_once("scores", Score, verdicts, work, identify=lambda verdict: verdict.id)
    require_some_scores(scores)
    check_limits(outputs, verdicts, scores, recipe.judge_limits, where=now.name, judge=recipe.judge)
    return scores


def judge_outputs(
    now: ArmIteration,
    folder: Path,
    prompts: Sequence[Prompt],
    outputs: Sequence[Output],
    settings: JudgeSettings,
    *,
    stage: str,
    measure: Measure | None = None,
) -> list[Verdict]:
    """Have outputs judged, whole groups together. `measure` gives the lengths that length control goes by, else characters."""
    work = partial(_judge_shard, tuple(prompts), measure)
    return _complete(now, folder, outputs, settings, work, stage=stage)


def judge_measured(
    now: ArmIteration, folder: Path, measurement: Measurement, outputs: Sequence[Output], *, stage: str
) -> list[Verdict]:
    """Have a model's outputs judged as a measurement asks: each by itself, or against the baseline's answers."""
    return _complete(now, folder, outputs, measurement.asked_judge, partial(_measure_shard, measurement), stage=stage)


def _complete(
    now: ArmIteration,
    folder: Path,
    outputs: Sequence[Output],
    settings: JudgeSettings,
    work: Callable[[Judge, Sequence[Output], Advance], list[Verdict]],
    *,
    stage: str,
) -> list[Verdict]:
    run = now.run
    needs = needs_of(settings)
    shards = cut(
        outputs,
        folder,
        key=lambda output: output.prompt_id,
        identify=lambda output: content_id(output.id, output.text),  # what was judged, not only which
        largest=run.recipe.execution.shard_prompts,
        workers=run.workers if needs.model else 1,
    )
    task = Task(
        place=now.place(stage),
        shards=shards,
        resource=judge_of(run.recipe, run.started, settings),
        work=work,
        needs=needs,
        calls=count_one,
        spent=spent_by,
    )
    return run.complete(task, folder, Verdict, unit="outputs")


def judge_of(recipe: Recipe, today: date, settings: JudgeSettings) -> Resource[Judge]:
    """Return the judge of some settings as the resource that shards share."""
    key = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
    return Resource(
        kind="judge",
        key=(key, today.isoformat()),
        make=partial(_start_judge, recipe, today, count_workers(recipe.execution), settings),
    )


def needs_of(settings: JudgeSettings) -> Needs:
    """Return what judging takes: workers for a judge that is a model here, several shards at once for one at an endpoint."""
    model = settings.holds_model
    return Needs(model=model, at_once=1 if model or not _asks_endpoint(settings) else SHARDS_AT_ONCE)


def spent_by(judge: Judge) -> dict[str, Any]:
    """Return what a judge has spent so far, by the names of the fields of a cost row."""
    return {f"judge_{name}": value for name, value in asdict(judge.costs()).items()}


def _start_judge(recipe: Recipe, today: date, processes: int, settings: JudgeSettings) -> Judge:
    from inward.judging.make import make_judge

    if settings.holds_model:
        set_up(recipe, processes)
    pairing = recipe.pairing  # "auto" is known only once all is judged: until then the middle of what it may come to
    return make_judge(settings, rho=pairing.rho_max / 2 if pairing.rho == "auto" else pairing.rho, today=today)


def _judge_shard(
    prompts: Sequence[Prompt], measure: Measure | None, judge: Judge, outputs: Sequence[Output], advance: Advance
) -> list[Verdict]:
    from inward.judging.stage import judge_outputs as judge_groups

    ids = {output.prompt_id for output in outputs}
    lengths = None if measure is None else {id_: length.response for id_, length in measure(outputs).items()}
    verdicts = judge_groups([prompt for prompt in prompts if prompt.id in ids], outputs, judge, lengths=lengths)
    advance(len(outputs), 0)
    return verdicts


def _measure_shard(measurement: Measurement, judge: Judge, outputs: Sequence[Output], advance: Advance) -> list[Verdict]:
    from inward.evaluation.measurement import judge_measured

    verdicts = judge_measured(measurement, outputs, judge)
    advance(len(outputs), 0)
    return verdicts


def _asks_endpoint(settings: JudgeSettings) -> bool:
    parts = settings.parts.values() if isinstance(settings, CombinedJudge) else [settings]
    return any(getattr(part, "endpoint", None) is not None for part in parts)
