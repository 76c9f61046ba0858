"""What a run starts from: its seed model and its prompts, checked before anything costs time, and pinned.

`inputs.json` holds a digest of each, so that a run is never continued from another model or other prompts, even where the
recipe names them by something that can change: a Hub name, a file, a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.config import Recipe
from inward.errors import RunChangedError, UsageError
from inward.models.identity import content_digest
from inward.records import Prompt, content_id
from inward.stages.engine import engine_of
from inward.stages.run import ArmIteration, Run
from inward.storage import read_json, write_json
from inward.thought import ThoughtFormat

if TYPE_CHECKING:
    from inward.prompts.draw import Draw


def seed_model(run: Run) -> Path:
    """Return the folder of M_0, fetching an embedded model first."""
    from inward.models.names import local_folder

    settings = run.recipe.model
    return local_folder(
        settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code, report=run.reporter.say
    )


def draw_prompts(run: Run, seed: Path) -> Draw:
    """Load, check and deal out all prompts of the run, and look for its judge and packages, before anything else costs time."""
    from inward.judging.make import check_judge
    from inward.models.tokenizer import encode_chat, load_context, load_tokenizer
    from inward.prompts import load_prompts
    from inward.prompts.draw import check_lengths, draw
    from inward.thought import messages
    from inward.training.memory import check_memory
    from inward.training.trackers import require_packages

    recipe, today = run.recipe, run.started
    if not all(ArmIteration(run, arm, 0).finished for arm in recipe.arms):
        run.executor.prepare(engine_of(recipe, seed, today=run.started))  # workers load it while this process reads the prompts
    loaded = load_prompts(recipe.prompts)
    tokenizer = load_tokenizer(seed, trust_remote_code=recipe.model.trust_remote_code)
    formats = [recipe.thought_format(arm) for arm in recipe.arms]

    def longest(text: str) -> int:
        return max(len(encode_chat(tokenizer, messages(fmt, text), today=today)) for fmt in formats)

    context = load_context(seed, tokenizer, trust_remote_code=recipe.model.trust_remote_code)
    _check_architecture(run, seed)
    limit = min(recipe.prompts.max_tokens, context - recipe.sampling.max_new_tokens)
    prompts, notes = check_lengths(loaded.prompts, longest, limit, recipe.prompts.unusable)
    require_packages(recipe.training)
    check_memory(
        seed,
        recipe.training,
        dtype=recipe.model.dtype,
        tokens=recipe.training.batch_tokens,
        processes=run.training_processes,
        sharded=recipe.execution.shard and run.training_processes > 1,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    for judge in [recipe.judge] if recipe.validation.judge is None else [recipe.judge, recipe.validation.judge]:
        check_judge(judge, prompts)
    for note in (*loaded.notes, *notes):
        run.reporter.say(note)
    check_markers(tokenizer, formats)
    dealt = draw(
        prompts,
        per_iteration=recipe.prompts.per_iteration,
        validation=recipe.prompts.validation,
        iterations=recipe.iterations,
        seed=recipe.seed,
    )
    _pin(run, seed, dealt)
    return dealt


def _check_architecture(run: Run, seed: Path) -> None:
    """Raise UsageError for a model that cannot be sampled or trained rightly; say where a slower way is taken, and why.

    How it is sampled matters only to our own engine: others have ways of their own.
    """
    from inward.training.support import check_architecture

    recipe = run.recipe
    sampled_here = recipe.sampling.engine == "transformers"
    support = check_architecture(seed, trust_remote_code=recipe.model.trust_remote_code, sampled_here=sampled_here)
    if support is None:
        return
    ways = [f"training is {support.training}"] if support.training != "packed" else []
    if sampled_here and (ways or support.sampling != "shared"):
        ways = [f"sampling is {support.sampling}", f"training is {support.training}"]
    if ways:
        run.reporter.say(f"{seed.name}: {', '.join(ways)} ({'; '.join(support.reasons)})")


def check_markers(tokenizer: Any, formats: Sequence[ThoughtFormat]) -> None:
    """Raise UsageError where a marker does not survive the tokenizer: no output could ever be split by it."""
    for fmt in formats:
        for marker in fmt.markers:
            tokens = tokenizer(marker, add_special_tokens=False).input_ids
            if marker not in tokenizer.decode(tokens, skip_special_tokens=True):
                raise UsageError(
                    f"thought format {fmt.name!r}: the marker {marker!r} is lost in the model's tokenizer (it is, or holds, a "
                    "special token); choose another marker"
                )


def _pin(run: Run, seed: Path, dealt: Draw) -> None:
    """Note what the run starts from, or refuse to go on from something else. More iterations may be added at the end."""
    from inward.judging.make import judge_contents

    path, recipe = run.dir.inputs, run.recipe
    contents: dict[str, Any] = {
        "started": run.started.isoformat(),
        "seed_model": content_digest(seed),
        "validation": _digest(dealt.validation),
        "iterations": [_digest(prompts) for prompts in dealt.iterations],
        "judges": judge_contents(recipe.judge) | _validation_contents(recipe, dealt),
    }
    stored = read_json(path) if path.exists() else contents
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
    if not path.exists() or len(contents["iterations"]) != len(stored["iterations"]):
        write_json(path, contents)


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
