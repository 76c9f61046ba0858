"""Pairs to checkpoints, one an epoch: in this process, in one of its own, or in several that share every step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from inward.config import Recipe
from inward.errors import RunChangedError, ShortOfMemory
from inward.execution.choose import in_team, isolated
from inward.execution.task import Advance
from inward.execution.team import in_processes
from inward.hardware import accelerators, give_back_memory
from inward.records import Output, Pair
from inward.runs.ledger import Cost, append_cost, peak_memory
from inward.runs.place import Place
from inward.stages.lengths import find_response_starts
from inward.stages.run import ArmIteration, Run
from inward.stages.set_up import set_up

if TYPE_CHECKING:
    from inward.training.examples import Example, ReferenceLogps
    from inward.training.job import Course
    from inward.training.team import TeamAddress

Call = tuple[Path, tuple["Example", ...], tuple["ReferenceLogps", ...], Recipe, Path, int, Place, Path, "Course | None"]
"""The arguments of `train_model` that all processes share."""


def examples(now: ArmIteration, pairs: Sequence[Pair], outputs: Sequence[Output], model: Path) -> list[Example]:
    """Turn pairs into what training takes; `model` is the one that sampled, whose tokenizer tells thought from response."""
    from inward.training.examples import build_examples, needs_parts

    settings = now.run.recipe.training
    if not needs_parts(settings):
        return build_examples(pairs, outputs, settings)
    paired = {id_ for pair in pairs for id_ in (pair.chosen_id, pair.rejected_id)}
    starts = find_response_starts(now, model, [output for output in outputs if output.id in paired])
    return build_examples(pairs, outputs, settings, starts)


def train(now: ArmIteration, model: Path, examples: Sequence[Example], reference: Sequence[ReferenceLogps]) -> list[Path]:
    """Train from M_t; return one checkpoint an epoch, fewer than `training.epochs` where it stopped early.

    Where the iteration is not validated there is nothing to choose by, and the last epoch's checkpoint is the only one.
    """
    from inward.training.batches import steps_per_epoch
    from inward.training.checkpoint import saved_step, stored_epochs
    from inward.training.early_stop import hold_out

    run, out, place = now.run, now.folder / "checkpoints", now.place("training")
    settings = run.recipe.training
    trained, _ = hold_out(examples, settings, seed=now.seed("training"))
    steps = steps_per_epoch(trained, settings) * settings.epochs
    call = (model, tuple(examples), tuple(reference), run.recipe, out, now.seed("training"), place, run.dir.costs, _course(now))
    left = steps - saved_step(out / "state")  # a stopped training goes on from there
    run.executor.release()  # training needs the memory that engines and judges hold
    run.reporter.begin(place, left, "steps")
    if run.training_processes > 1 or run.recipe.execution.ray is not None:
        train_together(run, call, place, steps)
    elif isolated(run.recipe.execution):
        in_processes(train_model, [(*call, None)], advance=run.reporter.advance, label=str(place))
    else:
        train_model(*call, None, run.reporter.advance)
        give_back_memory()
    run.reporter.end()
    return stored_epochs(out)


def _course(now: ArmIteration) -> Course | None:
    """Return where this training stands in the run, for an optimiser that is carried; what it goes on from must be there."""
    from inward.training.job import Course

    if not now.run.recipe.training.carry_optimiser:
        return None
    first = now.t == 1 or now.before.without_pairs == now.t - 1  # nothing was trained before it
    state = None if first else now.before.optimiser
    if state is not None and not state.exists():
        raise RunChangedError(
            f"{state} is gone, which {now.name} goes on from (training.carry_optimiser): restore it, or start a new run with "
            f"model.path = {str(now.before.model)!r}"
        )
    return Course(iteration=now.t, iterations=now.run.recipe.iterations, state=state)


def train_together(run: Run, call: Call, place: Place, steps: int) -> None:
    """Train in processes that share every step, again and again while memory runs out for weights that are cut over them."""
    while True:
        try:
            _train_once(run, call, place, steps)
            return
        except ShortOfMemory as error:  # less is taken at a time by those who start now, from the last state
            run.reporter.say(f"{place}: {error}")
            run.reporter.end()
            run.reporter.begin(place, steps, "steps")


def _train_once(run: Run, call: Call, place: Place, steps: int) -> None:
    """Train in processes of this machine, or of the recipe's cluster, where those that a node's death ends start again."""
    from inward.training.checkpoint import saved_step
    from inward.training.team import LONGEST_WAIT, open_team

    def restart() -> None:
        run.reporter.end()
        run.reporter.begin(place, steps - saved_step(call[4] / "state"), "steps")

    size, advance, label = run.training_processes, run.reporter.advance, str(place)
    if run.recipe.execution.ray is None:
        with open_team(size) as addresses:
            in_processes(train_model, [(*call, address) for address in addresses], advance=advance, label=label)
    else:
        in_team(
            run.recipe.execution,
            run.dir.root,
            _train_on_node,
            call,
            size=size,
            advance=advance,
            restart=restart,
            timeout_s=LONGEST_WAIT.total_seconds(),
            label=label,
        )


def _train_on_node(*arguments: Any) -> None:
    """Train as the process of a cluster that has this rank, of so many: the last arguments but one that hears of progress."""
    from inward.training.team import TeamAddress

    rank, size, advance = arguments[-3:]
    train_model(*cast("Call", arguments[:-3]), TeamAddress(rank, size), advance)


def train_model(
    model: Path,
    examples: Sequence[Example],
    reference: Sequence[ReferenceLogps],
    recipe: Recipe,
    out: Path,
    seed: int,
    place: Place,
    ledger: Path,
    course: Course | None,
    address: TeamAddress | None,
    advance: Advance,
) -> None:
    """Train, alone or as the process of a team that joins at `address`; the main process books what it came to."""
    from inward.training.metrics import StepMetrics, read_metrics
    from inward.training.team import ALONE, join_team
    from inward.training.train import train as train_pairs

    set_up(recipe, address.size if address else 1, model=model)

    def on_step(step: StepMetrics) -> None:
        advance(1, step.tokens)

    with join_team(address) if address else nullcontext(ALONE) as team:
        train_pairs(
            model,
            examples,
            reference,
            recipe.training,
            out,
            seed=seed,
            dtype=recipe.model.dtype,
            trust_remote_code=recipe.model.trust_remote_code,
            name=f"{recipe.training.tracker_run or ledger.parent.name}-{place.arm}-iter_{place.iteration:03d}",
            on_step=on_step,
            team=team,
            shard=recipe.execution.shard,
            course=course,
            only_last=not recipe.validates(place.iteration),
        )
    if not team.main:
        return
    steps = read_metrics(out / "metrics.jsonl")  # of this call and of any that was killed before it
    seconds = sum(step.seconds for step in steps)
    cost = Cost(
        arm=place.arm,
        iteration=place.iteration,
        stage=place.stage,
        part="all",
        seconds=seconds,
        device_seconds=seconds * min(1, accelerators()) * team.size,
        items=len(examples),
        tokens=sum(step.tokens for step in steps),
        judge_calls=0,
        peak_memory=peak_memory(),
    )
    append_cost(ledger, cost)
