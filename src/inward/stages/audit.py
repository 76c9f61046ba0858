"""What a run's stored verdicts say of its judge, and a judge asked about pairs that people have judged.

The latter goes in shards, so that a killed audit goes on where it was. Under the audit's folder there is one for each gold
file and judge, `<name>-<digest>/`, with the verdicts in Parquet. The digest is of the judge's settings and of its model's
files: what another judge said is never taken for this one's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from inward.config import JudgeSettings, PairwiseJudge, Recipe, RoutedJudge
from inward.errors import UsageError
from inward.execution.cut import make_shard
from inward.execution.task import Advance, Executor, Task, count_one
from inward.judging.stage import score_outputs
from inward.records import Output, Score, Verdict, content_id
from inward.runs.directory import RunDir
from inward.runs.ledger import compact
from inward.runs.opening import locked
from inward.runs.place import Place
from inward.runs.progress import Reporter
from inward.runs.shards import read_stage
from inward.stages.judging import judge_of, needs_of, spent_by
from inward.stages.run import Run
from inward.trust.audit import Audit, audit
from inward.trust.gold import GoldPair

SHARD = 32
"""Pairs a shard: what a kill loses at most. A multiple of it as a limit makes no shard that a larger limit does not have."""
SAMPLES = "samples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One judged stage of a run: an iteration's `samples`, or a model's validation (`of` names the model)."""

    arm: str
    iteration: int
    of: str
    complete: bool
    audit: Audit


def audit_run(run: RunDir, recipe: Recipe) -> list[Stage]:
    """Return the figures of every stage that has verdicts, of every arm and iteration.

    Battles against a baseline are left out: their figures (`win_rate.contradictions`) stand in the evaluation.
    """
    from inward.evaluation.measurement import needs_baseline

    stages = []
    for arm in recipe.arms:
        for t in run.iterations(arm):
            for name, folder in _judged(run.iteration(arm, t)):
                judge = recipe.judge if name == SAMPLES else recipe.validation_judge
                if name != SAMPLES and needs_baseline(judge):
                    continue
                complete, audited = _audit_folder(folder, judge)
                stages.append(Stage(arm=arm, iteration=t, of=name, complete=complete, audit=audited))
    return stages


def _judged(folder: Path) -> Iterator[tuple[str, Path]]:
    parts = [(SAMPLES, folder), *((path.name, path) for path in sorted((folder / "validation").glob("*")))]
    return (part for part in parts if any((part[1] / "verdicts").glob("part-*.parquet")))


def _audit_folder(folder: Path, judge: JudgeSettings) -> tuple[bool, Audit]:
    """Return whether all is judged, and the figures of what is: of the prompts with verdicts, where some have none yet."""
    outputs, verdicts = read_stage(folder / "outputs", Output), read_stage(folder / "verdicts", Verdict)
    judged = {verdict.prompt_id for verdict in verdicts}
    complete = all(output.prompt_id in judged for output in outputs if output.response is not None)
    if not complete:
        outputs = [output for output in outputs if output.prompt_id in judged]
    scores = read_stage(folder / "scores", Score) or score_outputs(outputs, verdicts, prior=judge.battle_prior)
    return complete, audit(outputs, verdicts, scores, judge=judge)


def ask_gold(
    recipe: Recipe, pairs: Sequence[GoldPair], name: str, out: Path, *, reporter: Reporter, executor: Executor
) -> list[Verdict]:
    """Return the verdicts of the recipe's judge on gold pairs, asking only what the audit's folder does not hold yet."""
    from inward.judging.make import check_judge

    judge = audited(recipe.judge)
    check_judge(judge, [])
    different = list({pair.id: pair for pair in pairs}.values())
    run = Run(recipe, RunDir(folder_of(judge, name, out)), reporter, executor)
    folder, needs = run.dir.root / "verdicts", needs_of(judge)
    with locked(run.dir, reporter):
        compact(run.dir.costs)
        parts = [different[start : start + SHARD] for start in range(0, len(different), SHARD)]
        task = Task(
            place=Place(arm="audit", iteration=0, stage=name),
            shards=tuple(make_shard(number, None, part, lambda pair: pair.id) for number, part in enumerate(parts)),
            resource=judge_of(recipe, date.today(), judge),
            work=_ask_shard,
            needs=needs,
            calls=count_one,
            spent=spent_by,
        )
        return run.complete(task, folder, Verdict, unit="pairs")


def _ask_shard(judge: Any, pairs: Sequence[GoldPair], advance: Advance) -> list[Verdict]:
    from inward.trust.gold import ask

    verdicts = ask(pairs, judge)
    advance(len(pairs), 0)
    return verdicts


def audited(judge: JudgeSettings) -> JudgeSettings:
    """Return the judge as an audit asks it: a pairwise one in both orders, whatever its tournament would leave out.

    Raises UsageError for a routed judge: what gold data would take which route nobody has said.
    """
    from inward.judging.make import in_both_orders

    if isinstance(judge, RoutedJudge):
        raise UsageError(
            "judge.kind = 'routed' is several judges, and gold data says nothing of routes: put the judge of one route into "
            "the recipe as judge, and audit that"
        )
    return in_both_orders(judge) if isinstance(judge, PairwiseJudge) else judge


def folder_of(judge: JudgeSettings, name: str, out: Path) -> Path:
    """Return where an audit's verdicts on one gold file are kept: a path can come to hold another model."""
    from inward.judging.make import judge_contents

    settings = json.dumps(judge.model_dump(mode="json"), sort_keys=True)
    return out / f"{name}-{content_id(settings, *judge_contents(judge).values())[:8]}"
