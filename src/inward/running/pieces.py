"""How stages with records of their own are cut into shards and run: whole or by prompt, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.config import JudgeSettings
from inward.errors import ShortOfMemory
from inward.records import Output, Prompt, Verdict, content_id
from inward.running.execute import Silent, cut, in_processes, one, run_shards
from inward.running.run import ArmIteration, Run
from inward.running.work import (
    Draws,
    draw_outputs,
    judge_shard,
    reference_shard,
    spent_by,
    start_engine,
    start_judge,
    start_reference,
    train_model,
)

if TYPE_CHECKING:
    from inward.sampling.lengths import Measure
    from inward.training.examples import Example, ReferenceLogps


def whole(
    at: ArmIteration,
    stage: str,
    record_type: type[Any],
    items: Sequence[Any],
    work: Callable[[Sequence[Any]], list[Any]],
    *,
    identify: Callable[[Any], str],
) -> list[Any]:
    """Run a stage that is cheap and needs all its items at once: one shard, in this process, no progress shown."""
    return run_shards(
        at.folder / stage,
        record_type,
        [items],
        identify=identify,
        place=at.place(stage),
        start=lambda: None,
        work=lambda _, group, __: work(group),
        costs=at.run.dir.costs,
        reporter=Silent(),
        unit="items",
        isolate=False,
    )


def sample_shards(
    at: ArmIteration,
    folder: Path,
    prompts: Sequence[Prompt],
    model: Path,
    draws: Draws,
    *,
    stage: str,
    purpose: str,
    base: Path | None = None,
) -> list[Output]:
    """Draw outputs of prompts, those of about one length together, so that a shard's rows end at about the same time."""
    recipe = at.run.recipe
    by_length = sorted(prompts, key=lambda prompt: (len(prompt.text), prompt.id))
    return run_shards(
        folder,
        Output,
        cut(by_length, recipe.execution.shard_prompts, lambda prompt: prompt.id),
        identify=lambda prompt: prompt.id,
        place=at.place(stage),
        start=partial(start_engine, recipe, model, base),
        work=partial(draw_outputs, recipe, at.arm, draws, at.seed(purpose)),
        costs=at.run.dir.costs,
        reporter=at.run.reporter,
        unit="outputs",
        units_per_item=draws.k,
        isolate=at.run.isolate,
        workers=recipe.execution.workers,
        tokens=_length,
    )


def judge_shards(
    at: ArmIteration,
    folder: Path,
    prompts: Sequence[Prompt],
    outputs: Sequence[Output],
    judge: JudgeSettings,
    *,
    stage: str,
    measure: Measure | None = None,
) -> list[Verdict]:
    """Have outputs judged, whole groups together; a judge that holds a model runs as sampling does."""
    from inward.judging.make import loads_model

    recipe = at.run.recipe
    heavy = loads_model(judge)
    return run_shards(
        folder,
        Verdict,
        cut(outputs, recipe.execution.shard_prompts, lambda output: output.prompt_id),
        identify=lambda output: content_id(output.id, output.text),  # what was judged, not only which
        place=at.place(stage),
        start=partial(start_judge, recipe, judge),
        work=partial(judge_shard, tuple(prompts), measure),
        costs=at.run.dir.costs,
        reporter=at.run.reporter,
        unit="outputs",
        isolate=at.run.isolate and heavy,
        workers=recipe.execution.workers if heavy else 1,
        calls=one,
        spent=spent_by,
    )


def reference_shards(at: ArmIteration, stage: str, examples: Sequence[Example], model: Path) -> list[ReferenceLogps]:
    """Have the reference's log-probabilities of some examples computed by a forward pass of `model`."""
    from inward.training.examples import ReferenceLogps

    recipe = at.run.recipe
    return run_shards(
        at.folder / stage,
        ReferenceLogps,
        cut(examples, recipe.execution.shard_prompts, lambda example: example.pair_id),
        identify=lambda example: example.pair_id,
        place=at.place(stage),
        start=partial(start_reference, recipe, model),
        work=partial(reference_shard, recipe),
        costs=at.run.dir.costs,
        reporter=at.run.reporter,
        unit="pairs",
        isolate=at.run.isolate,
    )


def train_together(run: Run, call: tuple[Any, ...], label: str, steps: int) -> None:
    """Train in processes that share every step, again and again while memory runs out for weights that are cut over them."""
    from inward.training.team import seats

    while True:
        with seats(run.processes) as taken:
            try:
                in_processes(train_model, [(*call, seat) for seat in taken], advance=run.reporter.advance, label=label)
                return
            except ShortOfMemory as error:  # less is taken at a time by those who start now, from the last state
                run.reporter.say(f"{label}: {error}")
                run.reporter.end()
                run.reporter.begin(label, steps, "steps")


def _length(output: Output) -> int:
    return len(output.tokens)
