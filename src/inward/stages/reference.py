"""The reference's log-probabilities of the pairs, stored before the first step of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from inward.config import Recipe
from inward.execution.cut import cut
from inward.execution.task import Advance, Needs, Resource, Task
from inward.models.names import local_copy
from inward.records import Output, Pair
from inward.stages.run import ArmIteration
from inward.stages.set_up import set_up
from inward.storage import write_json

if TYPE_CHECKING:
    from inward.training.examples import Example, ReferenceLogps
    from inward.training.reference import Reference


def reference(
    now: ArmIteration, pairs: Sequence[Pair], outputs: Sequence[Output], examples: Sequence[Example], model: Path
) -> list[ReferenceLogps]:
    """Store the reference's log-probabilities; none for an objective that has no reference.

    With those of the sampler, `reference.json` says how far they are from those of `model` on a few pairs.
    """
    from inward.training.examples import ReferenceLogps
    from inward.training.sampled import discrepancy, require_rounding, sampled_logps, to_check

    settings = now.run.recipe.training
    if not settings.needs_reference:
        return []
    if settings.reference != "sampler":
        return _forward(now, "reference", examples, model)
    work = partial(sampled_logps, pairs, outputs)
    sampled = now.complete_at_once("reference", ReferenceLogps, examples, work, identify=lambda example: example.pair_id)
    checked = to_check(examples)
    difference = discrepancy(checked, sampled, _forward(now, "reference_check", checked, model))
    write_json(now.folder / "reference.json", {"sampler_discrepancy": asdict(difference)})
    now.run.reporter.say(
        f"{now.name}: log-probabilities of the sampler differ from the reference's by {difference.mean:.2g} nats a sequence, "
        f"at most {difference.largest:.2g}, or {difference.per_token:.2g} a token ({difference.pairs} pairs)"
    )
    require_rounding(difference, now.name)
    return sampled


def _forward(now: ArmIteration, stage: str, examples: Sequence[Example], model: Path) -> list[ReferenceLogps]:
    """Have the log-probabilities of some examples computed by a forward pass of `model`."""
    from inward.training.examples import ReferenceLogps

    run = now.run
    folder = now.folder / stage
    shards = cut(
        examples,
        folder,
        key=lambda example: example.pair_id,
        identify=lambda example: example.pair_id,
        largest=run.recipe.execution.shard_prompts,
        workers=run.workers,
    )
    task = Task(
        place=now.place(stage),
        shards=shards,
        resource=Resource(kind="reference", key=(str(model),), make=partial(_start, run.recipe, model, run.workers)),
        work=partial(_measure_shard, run.recipe),
        needs=Needs(model=True),
    )
    return run.complete(task, folder, ReferenceLogps, unit="pairs")


def _start(recipe: Recipe, model: Path, processes: int) -> Reference:
    from inward.training.reference import load_reference

    model = local_copy(model)
    set_up(recipe, processes, model=model)
    return load_reference(model, recipe.training, dtype=recipe.model.dtype, trust_remote_code=recipe.model.trust_remote_code)


def _measure_shard(recipe: Recipe, reference: Reference, examples: Sequence[Example], advance: Advance) -> list[ReferenceLogps]:
    from inward.training.reference import reference_logps

    rows = reference_logps(reference, examples, recipe.training)
    advance(len(rows), sum(example.tokens for example in examples))
    return rows
