"""All that can be known of a run before it costs anything: what would stop it, and what it will take.

No weights are loaded and nothing is asked of a judge. What the run itself checks at its start is checked by the same functions
(`inputs.inspect`, `opening.may_open`, `pins.refuse_others`); what it would only meet later is looked for beside them: an
endpoint that does not answer, a judge too large for the memory, a disk too small for the models, more workers than devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inward.config import EndpointSettings, PairwiseJudge
from inward.errors import InwardError, MissingExtraError, UsageError
from inward.execution.choose import count_workers
from inward.hardware import accelerators, memory_of_process, processors
from inward.runs.ledger import read_costs
from inward.runs.opening import may_open, try_lock
from inward.stages import footprint, packages
from inward.stages.engine import sampler_needs
from inward.stages.findings import Findings
from inward.stages.footprint import DiskForecast, MemoryForecast
from inward.stages.forecast import Dealt, IterationForecast, Kind, forecast, projected
from inward.stages.inputs import Inputs, inspect, seed_model
from inward.stages.packages import Package
from inward.stages.pins import refuse_others
from inward.stages.run import ArmIteration, Run

if TYPE_CHECKING:
    from inward.prompts.draw import Draw

State = Literal["new", "begun", "finished", "not to be used"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What this machine has: `gpus`, processor cores, and the bytes of memory of one GPU, or of the machine without any."""

    gpus: int
    cores: int
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check came to. `problems` would stop the run, `notes` would not."""

    state: State
    problems: tuple[InwardError, ...]
    notes: tuple[str, ...]
    hardware: Hardware
    packages: tuple[Package, ...]
    iterations: tuple[IterationForecast, ...]
    memory: tuple[MemoryForecast, ...]
    disk: DiskForecast | None


def check(run: Run) -> Checked:
    """Check a run without starting it. Whatever is amiss comes back, all of it; nothing is written to the run directory."""
    from inward.judging.pairwise.endpoint_models import check_served

    recipe, findings = run.recipe, Findings()
    state = _directory(run, findings)
    seed = findings.attempt(partial(_seed, run))
    _check_devices(run, findings)
    inputs = inspect(run, seed, findings)
    needed = packages.packages_of(recipe)
    for package in needed:
        _check_package(package, findings)
    for endpoint in _endpoints(run):
        if note := findings.attempt(partial(check_served, endpoint)):
            findings.notes.append(note)
    if recipe.sampling.engine == "endpoint" and inputs.model is not None:
        findings.attempt(partial(_check_servers, run, inputs.model))
    if seed is not None and inputs.draw is not None and state == "begun":
        findings.attempt(partial(refuse_others, run, seed, inputs.draw))
    iterations = _forecast(run, inputs, findings)
    memory = _memory(run, inputs, findings)
    disk = None if inputs.model is None else footprint.disk_forecast(recipe, inputs.model, iterations, run.dir.root)
    if disk is not None:
        findings.attempt(partial(footprint.require_disk, disk, run.dir.root))
    return Checked(
        state=state,
        problems=tuple(findings.problems),
        notes=tuple(findings.notes),
        hardware=Hardware(gpus=accelerators(), cores=processors(), memory=memory_of_process()),
        packages=tuple(needed),
        iterations=tuple(iterations),
        memory=tuple(memory),
        disk=disk,
    )


def _check_servers(run: Run, model: Path) -> None:
    from inward.engines.endpoint.engine import check_servers

    assert run.recipe.sampling.endpoint is not None, "the engine of this name has its table"
    check_servers(run.recipe.sampling.endpoint, model, trust_remote_code=run.recipe.model.trust_remote_code, today=run.started)


def _check_devices(run: Run, findings: Findings) -> None:
    execution = run.recipe.execution
    if execution.ray is not None:
        findings.attempt(partial(count_workers, execution.model_copy(update={"workers": None})))  # whether the cluster answers
        return
    for key, count in (("execution.workers", execution.workers), ("execution.processes", execution.processes)):
        findings.attempt(partial(require_devices, key, count or 1))
    findings.attempt(partial(sampler_needs, run.recipe))


def require_devices(key: str, count: int) -> None:
    """Raise UsageError for a setting that asks for more processes at once than there are GPUs or, without any, cores."""
    gpus, cores = accelerators(), processors()
    if gpus == 0 and count > cores:
        raise UsageError(
            f"{key} = {count} is made for as many GPUs, and this machine has none and {cores} processor "
            f"core{'s' * (cores > 1)}: start the run where the GPUs are, or lower {key}"
        )
    if 0 < gpus < count:
        raise UsageError(
            f"{key} = {count} needs as many GPUs, one for each, and there are {gpus}: "
            f"set it to {gpus} or fewer, or leave it out"
        )


def _directory(run: Run, findings: Findings) -> State:
    """Return what the run directory is: nobody's yet, a run that would go on, or one that is done."""
    fresh = findings.attempt(partial(may_open, run.dir, run.recipe))
    if fresh is None:
        return "not to be used"
    findings.attempt(partial(try_lock, run.dir))
    if fresh:
        return "new"
    last = [ArmIteration(run, arm, run.recipe.iterations).finished for arm in run.recipe.arms]
    return "finished" if all(last) else "begun"


def _seed(run: Run) -> Path:
    """Return the seed's folder, without its weights where they are not here; a run that has begun is held to all of it."""
    from inward.models.names import config_folder

    if run.dir.inputs.exists():
        return seed_model(run)
    settings = run.recipe.model
    return config_folder(
        settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code, report=run.reporter.say
    )


def _check_package(package: Package, findings: Findings) -> None:
    """Check a package, unless what needs it has said already that it is missing, or needs it for some prompts only."""
    known = {error.extra for error in findings.problems if isinstance(error, MissingExtraError)}
    if package.version is not None or package.extra not in (*known, "verifiable"):
        findings.attempt(partial(packages.check_package, package))


def _endpoints(run: Run) -> list[EndpointSettings]:
    """Return the endpoints of all judges, each server and model once."""
    endpoints: dict[tuple[str, str], EndpointSettings] = {}
    for _, judge in footprint.judges_of(run.recipe):
        if isinstance(judge, PairwiseJudge) and (settings := judge.endpoint) is not None:
            endpoints.setdefault((settings.base_url, settings.model), settings)
    return list(endpoints.values())


def _forecast(run: Run, inputs: Inputs, findings: Findings) -> list[IterationForecast]:
    recipe, dealt = run.recipe, inputs.draw
    known = Dealt(
        iterations=None if dealt is None else dealt.iterations,
        validation=None if dealt is None else dealt.validation,
        lengths=inputs.lengths,
        baseline_answers=_baseline_answers(run, dealt, findings),
    )
    every = [(arm, t) for arm in recipe.arms for t in range(recipe.iterations + 1)]
    done = [(arm, t) for arm, t in every if ArmIteration(run, arm, t).finished]
    return projected(forecast(recipe, known, done), read_costs(run.dir.costs), _at_once(run))


def _baseline_answers(run: Run, dealt: Draw | None, findings: Findings) -> int:
    """Return how many answers there are to a prompt at most, where models are compared with a baseline's."""
    from inward.evaluation.measurement import read_baseline

    settings = run.recipe.validation
    if settings.baseline is None or dealt is None:
        return settings.samples
    answers = findings.attempt(partial(read_baseline, settings.baseline, dealt.validation))
    return max(map(len, (answers or {}).values()), default=1)


def _at_once(run: Run) -> dict[Kind, int]:
    """Return how many shards of each stage are in work at the same time."""
    from inward.stages.judging import needs_of

    judging, validating = needs_of(run.recipe.judge), needs_of(run.recipe.validation_judge)
    workers, drawing = _workers(run), _drawing_workers(run)
    return {
        "outputs": drawing,
        "validation": drawing,
        "reference": workers,
        "verdicts": workers if judging.model else judging.at_once,
        "judging of validation": workers if validating.model else validating.at_once,
    }


def _drawing_workers(run: Run) -> int:
    """Return how many workers draw outputs at once, each with all the accelerators that one engine takes."""
    needs = Findings().attempt(partial(sampler_needs, run.recipe))
    return _workers(run, 1 if needs is None else needs.devices)


def _workers(run: Run, devices: int = 1) -> int:
    """Return how many workers there are; 1 where that cannot be told, which `_check_devices` has said."""
    return Findings().attempt(partial(count_workers, run.recipe.execution, devices)) or 1


def _memory(run: Run, inputs: Inputs, findings: Findings) -> list[MemoryForecast]:
    """Return what the processes of each stage hold. That training does not fit `inputs.inspect` has said."""
    recipe, workers, seed = run.recipe, _workers(run), inputs.model
    used = {prompt.text for prompt in inputs.prompts or ()}
    counts = [count for lengths in inputs.lengths.values() for text, count in lengths.items() if text in used]
    longest, output = max(counts, default=recipe.prompts.max_tokens), recipe.sampling.max_new_tokens
    parts: list[Callable[[], MemoryForecast | None]] = []
    if seed is not None and recipe.sampling.engine != "endpoint":  # whose model is elsewhere
        parts.append(partial(footprint.sampling_memory, recipe, seed, longest, _drawing_workers(run)))
    for key, judge in footprint.judges_of(recipe):
        parts.append(partial(footprint.judge_memory, recipe, key, judge, longest, output, workers))
    if seed is not None and (processes := findings.attempt(lambda: run.training_processes)) is not None:
        parts.append(partial(footprint.training_memory, recipe, seed, processes))
    memory = [findings.attempt(part) for part in parts]
    return [one for one in memory if one is not None]
