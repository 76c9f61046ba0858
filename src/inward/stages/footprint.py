"""What a run takes of memory and disk: of each process that samples, judges or trains, and of the folder it writes to."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inward.config import JudgeSettings, PairwiseJudge, Recipe, RewardModelJudge
from inward.config.engines import EndpointEngineSettings
from inward.config.judging import Single
from inward.errors import UsageError
from inward.stages.forecast import IterationForecast

BYTES_PER_TOKEN = 14
"""Of a stored output, before compression: the token's id, whether it was written, and its text twice (whole, and in parts)."""
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryForecast:
    """Bytes that one process of a stage holds at most: the `weights` and the `rest`; and what it has (`there`).

    `rest` are the keys and values of all rows at their full length, in training gradients, moments and activations.
    """

    stage: str
    model: str
    weights: int
    rest: int
    there: int

    @property
    def total(self) -> int:
        return self.weights + self.rest


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskForecast:
    """Bytes on the disk: the `models` that stay, what an iteration holds meanwhile (`checkpoints`, `state`), and `records`.

    `records` are reckoned at the full length of every output, before compression. `free` is what the disk has.
    """

    models: int
    checkpoints: int
    state: int
    records: int
    free: int

    @property
    def needed(self) -> int:
        """What has to fit at the same time, but for records: these are mostly far smaller than their bound."""
        return self.models + self.checkpoints + self.state


def sampling_memory(recipe: Recipe, seed: Path, longest_prompt: int, workers: int) -> MemoryForecast | None:
    """Return what a process holds that samples, or None where the model's folder does not tell, or where servers sample.

    Raises UsageError where the model does not fit with even one row. vLLM has the part of a GPU that `sampling.vllm.memory`
    gives it, and takes all of that: as many rows at a time as there is room for.
    """
    from inward.engines.memory import ROWS, drawing_needs, require_memory
    from inward.hardware import device, memory_of_process, resolve_dtype

    settings, sampling, options = recipe.model, recipe.sampling, recipe.sampling.engine_options
    if isinstance(options, EndpointEngineSettings):
        return None
    needs = drawing_needs(
        seed,
        dtype=resolve_dtype(settings.dtype, device()),
        rows=sampling.rows or ROWS,
        parts=options.tensor_parallel if options else 1,
        tokens=longest_prompt + sampling.max_new_tokens,
        trust_remote_code=settings.trust_remote_code,
    )
    if needs is None:
        return None
    there = int(memory_of_process(workers) * (options.memory if options else 1.0))
    remedy = "Lower sampling.max_new_tokens or execution.workers, take a smaller model.path, or run where there is more memory"
    require_memory(needs, there, what=f"sampling with model.path {settings.path!r}", remedy=remedy)
    rest = there - needs.weights if options else needs.cache
    return MemoryForecast(stage="sampling", model=settings.path, weights=needs.weights, rest=rest, there=there)


def judge_memory(
    recipe: Recipe, key: str, settings: Single, longest_prompt: int, longest_output: int, workers: int
) -> MemoryForecast | None:
    """Return what a process holds that judges with a model here; None for a judge without one, or of unknown size.

    Raises UsageError where the model does not fit with even one conversation. That there is no such model is for the judge's
    own check to say.
    """
    from inward.engines.memory import drawing_needs, require_memory
    from inward.hardware import device, memory_of_process, resolve_dtype
    from inward.judging.most import task_tokens
    from inward.models.names import config_folder

    if not isinstance(settings, RewardModelJudge | PairwiseJudge) or settings.path is None:
        return None
    if isinstance(settings, RewardModelJudge):
        rows, tokens = max(1, settings.batch_tokens // settings.max_tokens), settings.max_tokens
    else:
        written = settings.max_tokens if settings.verdict == "text" else 1
        rows, tokens = settings.rows, task_tokens(settings) + longest_prompt + 2 * longest_output + written
    trusted = settings.trust_remote_code
    try:
        folder = config_folder(settings.path, trust_remote_code=trusted)
        dtype = resolve_dtype(settings.dtype, device())
        needs = drawing_needs(folder, dtype=dtype, rows=rows, tokens=tokens, trust_remote_code=trusted)
    except UsageError:
        return None
    if needs is None:
        return None
    there = memory_of_process(workers)
    remedy = f"Put the judge behind an endpoint ({key}.endpoint), or take a smaller one"
    require_memory(needs, there, what=f"judging with {key}.path {settings.path!r}", remedy=remedy)
    return MemoryForecast(stage="judging", model=settings.path, weights=needs.weights, rest=needs.cache, there=there)


def training_memory(recipe: Recipe, seed: Path, processes: int) -> MemoryForecast | None:
    """Return what a process holds that trains; None where the model's folder does not tell."""
    from inward.hardware import memory_of_process
    from inward.training.memory import estimate

    needs = estimate(
        seed,
        recipe.training,
        dtype=recipe.model.dtype,
        tokens=recipe.training.batch_tokens,
        processes=processes,
        sharded=recipe.execution.shard and processes > 1,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    if needs is None:
        return None
    there = memory_of_process(processes)
    rest = needs.total - needs.weights
    return MemoryForecast(stage="training", model=recipe.model.path, weights=needs.weights, rest=rest, there=there)


def disk_forecast(recipe: Recipe, seed: Path, iterations: Sequence[IterationForecast], out: Path) -> DiskForecast | None:
    """Return what the run directory will take beyond what it holds; None where the model's folder does not tell."""
    from transformers import AutoConfig

    from inward.models.size import count_parameters, stored_bytes
    from inward.training.memory import estimate

    trusted, training = recipe.model.trust_remote_code, recipe.training
    parameters = count_parameters(seed, trust_remote_code=trusted)
    needs = estimate(
        seed, training, dtype=recipe.model.dtype, tokens=training.batch_tokens, trust_remote_code=trusted
    )  # of one process: a state is stored whole, whoever holds which part of it
    if parameters is None or needs is None:
        return None
    trained = needs.optimiser // (2 if training.optimiser == "adamw_8bit" else 8)
    model = stored_bytes(seed, parameters, AutoConfig.from_pretrained(seed, trust_remote_code=trusted))
    todo = [one for one in iterations if not one.finished]
    written = sum(stage.written for one in todo for stage in one.stages)
    epochs = training.epochs if any(recipe.validates(one.iteration) for one in todo if one.iteration) else 1
    state = 4 * trained + needs.optimiser
    carried = (1 + epochs) * state if training.carry_optimiser else 0  # the last iteration's, and one beside each checkpoint
    return DiskForecast(
        models=model * _models_kept(recipe, todo),
        checkpoints=epochs * (model if training.lora is None else 4 * trained),
        state=2 * state + carried,  # the next one is whole before the last one goes
        records=BYTES_PER_TOKEN * written,
        free=shutil.disk_usage(_existing(out)).free,
    )


def _models_kept(recipe: Recipe, todo: Sequence[IterationForecast]) -> int:
    """Return how many models are added at most: with `keep_models` the latest, the best and the last that was measured."""
    counts = Counter(one.arm for one in todo if one.iteration)
    keep = recipe.execution.keep_models
    return sum(count if keep is None else min(count, keep + 2) for count in counts.values())


def require_disk(disk: DiskForecast, out: Path) -> None:
    """Raise UsageError where models, checkpoints and the state of a training do not fit on the disk of `out`."""
    if disk.needed > disk.free:
        raise UsageError(
            f"{out} is on a disk with {disk.free / GIB:.1f} GiB free, and the run would come to hold up to "
            f"{disk.needed / GIB:.1f}: {disk.models / GIB:.1f} of models, {disk.checkpoints / GIB:.1f} of one training's "
            f"checkpoints, {disk.state / GIB:.1f} of the state that it goes on from. Choose another disk with --out, lower "
            "training.epochs or iterations, or train an adapter with training.lora"
        )


def judges_of(recipe: Recipe) -> Iterator[tuple[str, Single]]:
    """Yield each single judge of a recipe with its key: of the samples, and of the validation where that has its own."""
    from inward.judging.most import parts_of

    settings: list[tuple[str, JudgeSettings]] = [("judge", recipe.judge)]
    if recipe.validation.judge is not None:
        settings.append(("validation.judge", recipe.validation.judge))
    for key, judge in settings:
        yield from parts_of(judge, key).items()


def _existing(path: Path) -> Path:
    """Return the nearest folder above a path, or itself, that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
