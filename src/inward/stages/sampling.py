"""Prompts to outputs: every prompt's samples, drawn in shards of prompts of about one length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from inward.config import Arm, Recipe
from inward.execution.choose import count_workers
from inward.execution.cut import cut
from inward.execution.task import Advance, Task
from inward.records import Output, Prompt
from inward.sampling.draws import Draws
from inward.stages.engine import engine_of, sampler_needs
from inward.stages.run import ArmIteration

if TYPE_CHECKING:
    from inward.engines.engine import Engine


def sample(now: ArmIteration, prompts: Sequence[Prompt], model: Path) -> list[Output]:
    """Draw K outputs of every prompt from M_t."""
    settings = now.run.recipe.sampling
    draws = Draws(
        k=settings.k,
        tries=1,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        logps=now.run.recipe.training.reference == "sampler",
        allow_cut_off=settings.cut_off_responses == "allow",
    )
    return draw_outputs(now, now.folder / "outputs", prompts, model, draws, stage="outputs", purpose="outputs")


def draw_outputs(
    now: ArmIteration,
    folder: Path,
    prompts: Sequence[Prompt],
    model: Path,
    draws: Draws,
    *,
    stage: str,
    purpose: str,
    base: Path | None = None,
) -> list[Output]:
    """Draw outputs, prompts of about one length together, so that the rows of a shard end at about the same time.

    The seed depends on the iteration and the `purpose` only: both arms and all checkpoints share it.
    """
    run, needs = now.run, sampler_needs(now.run.recipe)
    by_length = sorted(prompts, key=lambda prompt: (len(prompt.text), prompt.id))
    shards = cut(
        by_length,
        folder,
        key=lambda prompt: prompt.id,
        identify=lambda prompt: prompt.id,
        largest=run.recipe.execution.shard_prompts,
        workers=count_workers(run.recipe.execution, needs.devices),
    )
    task = Task(
        place=now.place(stage),
        shards=shards,
        resource=engine_of(run.recipe, model, base, today=run.started),
        work=partial(_draw_shard, run.recipe, now.arm, draws, now.seed(purpose)),
        needs=needs,
        tokens=_count_tokens,
    )
    return run.complete(task, folder, Output, unit="outputs", units_per_item=draws.k)


def _draw_shard(
    recipe: Recipe, arm: Arm, draws: Draws, seed: int, engine: Engine, prompts: Sequence[Prompt], advance: Advance
) -> list[Output]:
    from inward.engines.engine import Decoding
    from inward.sampling.sample import sample as draw_samples

    settings = recipe.sampling
    scaffold = recipe.thought.scaffold if arm == "thinking" else None
    decoding = Decoding(
        temperature=draws.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_new_tokens=draws.max_new_tokens,
        logps=draws.logps,
    )
    return draw_samples(
        prompts,
        engine,
        recipe.thought_format(arm),
        decoding,
        k=draws.k,
        seed=seed,
        scaffold_budget=scaffold.budget if scaffold else None,
        tries=draws.tries,
        allow_cut_off=draws.allow_cut_off,
        progress=advance,
    )


def _count_tokens(output: Output) -> int:
    return len(output.tokens)
