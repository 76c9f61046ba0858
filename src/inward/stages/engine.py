"""The engine of a run's models, as the resource that sampling stages share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from inward.config import Recipe
from inward.errors import UsageError
from inward.execution.choose import count_workers
from inward.execution.task import Resource
from inward.stages.set_up import set_up

if TYPE_CHECKING:
    from inward.engines.engine import Engine


def engine_of(recipe: Recipe, model: Path, base: Path | None = None) -> Resource[Engine]:
    """Return the engine of a recipe for a model folder, or for an adapter on `base`."""
    return Resource(kind="engine", key=(str(model), str(base)), make=partial(start_engine, recipe, model, base))


def start_engine(recipe: Recipe, model: Path, base: Path | None) -> Engine:
    """Load an engine in the process that samples.

    Raises UsageError where the recipe wants a reference that the engine cannot give: with the run's first samples, whatever
    these are for.
    """
    from inward.engines.transformers.engine import load_engine

    set_up(recipe, count_workers(recipe.execution))
    engine = load_engine(
        model,
        base=base,
        dtype=recipe.model.dtype,
        rows=recipe.sampling.rows,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    if recipe.training.reference == "sampler" and not engine.gives_logps:
        raise UsageError(
            "training.reference = 'sampler' needs an engine that gives the raw log-probabilities of what it draws, and this "
            "one does not: leave training.reference out, and the reference is computed before training"
        )
    return engine
