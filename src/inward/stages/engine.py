"""The engine of a run's models, as the resource that sampling stages share."""

from __future__ import annotations

from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from inward.config import Recipe, VllmSettings
from inward.errors import UsageError
from inward.execution.choose import count_accelerators, count_workers
from inward.execution.task import Needs, Resource
from inward.models.names import local_copy
from inward.stages.set_up import set_up

SHARDS_AT_ONCE = 2
"""Shards that are drawn at the same time at servers: the last outputs of one leave room for the first ones of another."""

if TYPE_CHECKING:
    from inward.engines.engine import Engine

ASLEEP = frozenset({"vllm"})
"""The engines that, closed on an accelerator, sleep: they keep neither weights nor keys there, and wake with another model."""


def engine_of(recipe: Recipe, model: Path, base: Path | None = None, *, today: date) -> Resource[Engine]:
    """Return the engine of a recipe for a model folder, or for an adapter on `base`.

    `today` is what chat templates that write a date are told.

    An engine that was made in the same way takes the model by itself (`Engine.load`).
    """
    made = (recipe.sampling.engine, recipe.model.dtype, recipe.sampling.rows, recipe.model.trust_remote_code, today)
    workers = count_workers(recipe.execution, sampler_needs(recipe).devices)
    return Resource(
        kind=f"engine {made}",
        key=(str(model), str(base)),
        make=partial(start_engine, recipe, model, base, today, workers),
        renew=partial(_take_model, model, base),
        close=_close,
        sleeps=recipe.sampling.engine in ASLEEP and count_accelerators(recipe.execution) > 0,
    )


def sampler_needs(recipe: Recipe) -> Needs:
    """Return what drawing takes: workers with a model each, over as many accelerators as the engine cuts it, or servers.

    Raises UsageError where there are accelerators, but fewer.
    """
    if recipe.sampling.engine == "endpoint":
        return Needs(at_once=SHARDS_AT_ONCE)
    options = recipe.sampling.engine_options
    devices = options.tensor_parallel if isinstance(options, VllmSettings) else 1
    if devices > 1 and 0 < (gpus := count_accelerators(recipe.execution)) < devices:
        raise UsageError(
            f"sampling.vllm.tensor_parallel = {devices} cuts the model over {devices} GPUs, and there are {gpus}: "
            f"set it to {gpus} or fewer, or leave it out"
        )
    return Needs(model=True, devices=devices)


def start_engine(recipe: Recipe, model: Path, base: Path | None, today: date, processes: int = 1) -> Engine:
    """Load an engine in one of the `processes` that sample.

    Raises UsageError where the recipe asks for what the engine cannot do: with the run's first samples, whatever these are for.
    """
    from inward.engines.engine import require_abilities
    from inward.engines.load import load_engine

    model = local_copy(model)
    set_up(recipe, processes, model=model)
    engine = load_engine(
        model,
        recipe.sampling.engine,
        base=base and local_copy(base),
        dtype=recipe.model.dtype,
        rows=recipe.sampling.rows,
        trust_remote_code=recipe.model.trust_remote_code,
        today=today,
        options=recipe.sampling.engine_options,
    )
    scaffolded = recipe.thought.scaffold is not None and "thinking" in recipe.arms
    require_abilities(engine, logps=recipe.training.reference == "sampler", scaffold=scaffolded)
    if recipe.sampling.engine == "endpoint":
        from inward.engines.endpoint.engine import require_new_weights

        require_new_weights(engine)
    return engine


def _take_model(model: Path, base: Path | None, engine: Engine) -> bool:
    """Have an engine take another model; False where it cannot, and has to be made anew."""
    if engine.abilities.reload:
        engine.load(local_copy(model), base and local_copy(base))
    return engine.abilities.reload


def _close(engine: Engine) -> None:
    engine.close()
