"""Digests of what a run starts from, in `inputs.json`: its model, its prompts, what its judges only name.

So a run is never continued from another model or other prompts, even where the recipe names them by something that can change:
a Hub name, a file, a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.config import Recipe
from inward.errors import RunChangedError
from inward.models.identity import content_digest
from inward.records import Prompt, content_id
from inward.stages.run import Run
from inward.storage import read_json, write_json

if TYPE_CHECKING:
    from inward.prompts.draw import Draw


def pin(run: Run, seed: Path, dealt: Draw) -> None:
    """Note what the run starts from, or refuse to go on from something else. More iterations may be added at the end."""
    path, contents = run.dir.inputs, _contents(run, seed, dealt)
    stored = read_json(path) if path.exists() else contents
    _refuse_others(run, stored, contents)
    if not path.exists() or len(contents["iterations"]) != len(stored["iterations"]):
        write_json(path, contents)


def refuse_others(run: Run, seed: Path, dealt: Draw) -> None:
    """Raise RunChangedError where a run has begun from something else than it would go on from. Nothing is written."""
    if run.dir.inputs.exists():
        _refuse_others(run, read_json(run.dir.inputs), _contents(run, seed, dealt))


def _contents(run: Run, seed: Path, dealt: Draw) -> dict[str, Any]:
    """Return what `inputs.json` holds: a digest of all that the run starts from."""
    from inward.judging.make import judge_contents

    recipe = run.recipe
    return {
        "started": run.started.isoformat(),
        "seed_model": content_digest(seed),
        "validation": _digest(dealt.validation),
        "iterations": [_digest(prompts) for prompts in dealt.iterations],
        "judges": judge_contents(recipe.judge) | _validation_contents(recipe, dealt),
    }


def _refuse_others(run: Run, stored: dict[str, Any], contents: dict[str, Any]) -> None:
    path = run.dir.inputs
    remedy = "restore what the run was begun with, or start a new run with another --out"
    if len(stored["seed_model"]) != len(contents["seed_model"]):
        raise RunChangedError(
            f"{path} was written by an earlier version of inward, which noted the model in another way, so that it cannot be "
            "told whether it is still the same: start a new run with another --out, or go on with that version"
        )
    if stored["seed_model"] != contents["seed_model"]:
        raise RunChangedError(f"model.path {run.recipe.model.path!r} holds another model than when the run was begun: {remedy}")
    for key, digest in stored.get("judges", {}).items():
        if contents["judges"].get(key, digest) != digest:
            raise RunChangedError(f"{key} names something else than when the run was begun: its content has changed; {remedy}")
    common = min(len(stored["iterations"]), len(contents["iterations"]))
    if stored["validation"] != contents["validation"] or stored["iterations"][:common] != contents["iterations"][:common]:
        raise RunChangedError(f"prompts.sources hold other prompts than when the run was begun: {remedy}")


def _validation_contents(recipe: Recipe, dealt: Draw) -> dict[str, str]:
    """Return digests of what the measurement of models depends on and the recipe only names."""
    from inward.evaluation.measurement import read_baseline
    from inward.judging.make import judge_contents

    validation = recipe.validation
    contents = {} if validation.judge is None else judge_contents(validation.judge, "validation.judge")
    if validation.baseline is not None:
        answers = read_baseline(validation.baseline, dealt.validation)
        contents["validation.baseline"] = content_id(*(repr(item) for item in sorted(answers.items())))
    return contents


def _digest(prompts: Sequence[Prompt]) -> str:
    return content_id(*(repr(prompt) for prompt in prompts))
