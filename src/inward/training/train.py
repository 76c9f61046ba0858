"""The training loop: an objective from one model folder, full or LoRA, to one checkpoint an epoch.

    out/epoch_01/ ...   a complete model folder each, or a LoRA adapter; never rewritten
    out/metrics.jsonl   one line an optimiser step
    out/held_out.jsonl  one line an epoch, with `training.early_stop`
    out/state/          what training goes on from after a kill; gone once the last epoch is stored
    out/optimiser/epoch_01/ ...   with `training.carry_optimiser`: what the next iteration goes on from, if it takes this epoch
    out/training.json   what the result depends on; a folder made with anything else is refused

A kill at any instant loses the steps since the last saved state and nothing else. On the CPU with the same number of
threads the resumed run stores the very bytes of an uninterrupted one (only `seconds` differ).

Several processes may share the steps (`team`). What is stored is the same up to rounding, and the states are: a training
can go on with another number of processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from inward.config import Dtype, TrainingSettings
from inward.errors import TrainingError
from inward.hardware import device, kept_memory, measured_peak
from inward.storage import remove
from inward.training.batches import MicroBatches, collate, micro_batches, most_tokens, steps_from
from inward.training.checkpoint import keep_states, load_state, save_state, saved_step, state_path, stored_epochs
from inward.training.early_stop import HeldOut, add_held_out, hold_out, read_held_out, stops, summarise_held_out
from inward.training.examples import Example, ReferenceLogps
from inward.training.job import Course, Job, claim, stop
from inward.training.logps import sequence_logps
from inward.training.memory import Budget, check_memory, lower_budget
from inward.training.metrics import (
    PairTerms,
    StepMetrics,
    append_metrics,
    cut_metrics,
    read_terms,
    stack_terms,
    summarise,
    sync_metrics,
)
from inward.training.objective import losses, pair_sums
from inward.training.optimiser import round_to_working
from inward.training.reference import align_reference
from inward.training.sharding import allowed_tokens, idle_passes, put_together, shortest, start_again
from inward.training.support import check_positions
from inward.training.team import ALONE, Team, peers
from inward.training.trackers import Tell, require_packages, tracking
from inward.training.trainee import Trainee, evaluating, make_trainee, seeded, write_checkpoint
from inward.training.weights import working_dtype


def train(
    model_path: Path,
    examples: Sequence[Example],
    reference: Sequence[ReferenceLogps],
    settings: TrainingSettings,
    out: Path,
    *,
    seed: int,
    dtype: Dtype,
    trust_remote_code: bool = False,
    name: str = "inward",
    on_step: Callable[[StepMetrics], None] | None = None,
    team: Team = ALONE,
    shard: bool = False,
    course: Course | None = None,
    only_last: bool = False,
) -> list[Path]:
    """Train on the examples and return the checkpoints, one an epoch; go on where an earlier call was stopped.

    `name` is the run's at the trackers. `on_step` is called after each step taken now, not for those of an earlier call.
    With a `team`, all its processes call this with the same arguments, and the main one writes. With `shard` each of several
    holds a part of the weights, gradients and moments instead of all. `course` is for `carry_optimiser`, and with `only_last`
    no checkpoint is stored but the last epoch's (`Job`).
    Raises TrainingError (no examples, a loss or gradient that is not finite), ShortOfMemory (with `shard`: call again in all
    processes), RunChangedError (`out` was made from something else), StorageError, UsageError.
    """
    if not examples:
        raise TrainingError(
            "there are no pairs to train on: the judge told no two outputs of any prompt apart. Sample more outputs "
            "(sampling.k), use more prompts (prompts.per_iteration), or lower pairing.min_gap"
        )
    require_packages(settings)
    by_id = {logps.pair_id: logps for logps in reference}
    missing = [example.pair_id for example in examples if example.pair_id not in by_id and settings.needs_reference]
    assert not missing, f"no reference log-probabilities for pairs {missing}"
    assert (course is not None) == settings.carry_optimiser, "an optimiser is carried along a course"
    training, held_out = hold_out(examples, settings, seed=seed)
    job = Job(
        model_path=model_path,
        examples=tuple(training),
        held_out=tuple(held_out),
        reference=by_id,
        settings=settings,
        out=out,
        seed=seed,
        budget=Budget(settings.batch_tokens),
        team=team,
        course=course,
        only_last=only_last,
    )
    done, finished, job.budget.tokens = team.agree(lambda: _begin(job, dtype))
    if not finished:
        restored = done > 0 or (course is not None and course.state is not None)
        sharded = shard and team.size > 1
        trainee = _load(job, dtype=dtype, trust_remote_code=trust_remote_code, sharded=sharded, restored=restored)
        with kept_memory(), tracking(settings, out, name=name, done=done) as tell:
            _run(job, trainee, done, tell, on_step)
    team.wait()
    if team.main:
        if course is not None:
            keep_states(out, job.per_epoch)
        remove(out / "state")
    return stored_epochs(out)


def _begin(job: Job, dtype: Dtype) -> tuple[int, bool, int]:
    """Make `out` ready to go on in; return the steps done so far, whether there are no more to do, and tokens at a time."""
    claim(job, dtype)
    state = job.out / "state"
    done = saved_step(state)
    finished = _finished(job)
    if not finished:
        cut_metrics(job.out / "metrics.jsonl", done)
    return done, finished, allowed_tokens(state, job.budget.tokens)


def _load(job: Job, *, dtype: Dtype, trust_remote_code: bool, sharded: bool, restored: bool) -> Trainee:
    """Load what is trained, if the machine has the memory. What the hardware can do is measured while that is free."""
    check_memory(
        job.model_path,
        job.settings,
        dtype=dtype,
        tokens=most_tokens((*job.examples, *job.held_out), job.settings),
        processes=job.team.size,
        sharded=sharded,
        trust_remote_code=trust_remote_code,
    )
    measured_peak(working_dtype(dtype), device())
    trainee = make_trainee(
        job.model_path,
        job.settings,
        seed=job.seed,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        team=job.team,
        sharded=sharded,
        restored=restored,
    )
    check_positions(trainee.model, (*job.examples, *job.held_out))
    return trainee


def _run(job: Job, trainee: Trainee, done: int, tell: Tell, on_step: Tell | None) -> None:
    """Take the steps that are missing. An epoch's state is stored before its folder, so that the next epoch can go on from it.

    The last epoch has no next one: its steps since the last saved state are taken again if a kill comes before its folder.
    """
    state = job.out / "state"
    if done:
        load_state(state_path(state, done), trainee.weights, trainee.optimiser)
        if _end_epoch(job, trainee, done):
            return
    elif job.course is not None and job.course.state is not None:
        load_state(job.course.state, trainee.weights, trainee.optimiser)
    for step, epoch, pairs in steps_from(done, job.examples, job.settings, seed=job.seed):
        metrics = _step(job, trainee, pairs, step, epoch)
        done = step + 1
        _store_step(job, trainee, metrics)
        ended = _end_epoch(job, trainee, done)
        if job.team.main:
            tell(metrics)
            if on_step:
                on_step(metrics)
        if ended:
            return


def _store_step(job: Job, trainee: Trainee, metrics: StepMetrics) -> None:
    """Append a step's metrics, and store the state where one is due: before an epoch's folder, and to be carried on."""
    path, step = job.out / "metrics.jsonl", metrics.step
    epoch, inside = divmod(step, job.per_epoch)
    ends = not inside and job.stores(epoch)
    last = job.settings.early_stop is None and step == job.settings.epochs * job.per_epoch
    carried = range(job.per_epoch, step + 1, job.per_epoch) if job.course is not None and not job.only_last else ()
    saves = (step % job.settings.save_steps == 0 or ends) and (not last or job.course is not None)
    if job.team.main:
        append_metrics(path, metrics)
        if saves or last:
            sync_metrics(path)
    if saves:
        save_state(job.out / "state", step, trainee.weights, trainee.optimiser, job.team, keep=carried)


def _end_epoch(job: Job, trainee: Trainee, done: int) -> bool:
    """Where `done` steps end an epoch, store what is missing of it; say whether it was the last one."""
    number, inside = divmod(done, job.per_epoch)
    if inside or not job.stores(number):
        return False
    if not job.team.agree(job.epoch(number).exists):
        write_checkpoint(trainee, job.model_path, job.epoch(number), job.team)
    if bool(job.held_out) and job.team.agree(lambda: len(read_held_out(job.out)) < number):
        row = _held_out(job, trainee, number)
        if job.team.main:
            add_held_out(job.out, row)
    return job.team.agree(lambda: _finished(job))


def _finished(job: Job) -> bool:
    """Say whether every epoch is stored that there will be."""
    if job.settings.early_stop is None:
        return job.epoch(job.settings.epochs).exists()
    losses = [row.loss for row in read_held_out(job.out)]
    return len(losses) == job.settings.epochs or stops(losses, job.settings.early_stop)


def _held_out(job: Job, trainee: Trainee, epoch: int) -> HeldOut:
    """Measure the held-out pairs."""
    micros, idle = _passes(job, trainee, job.team.share(job.held_out), job.held_out)
    with torch.no_grad(), evaluating(trainee.model), _together(trainee):
        stacked = [_pair_losses(job, trainee, micro)[1] for micro in micros]
        for micro in idle:
            _pair_losses(job, trainee, micro)
    return summarise_held_out(_gather_terms(job, micros, stacked)[0], epoch)


def _step(job: Job, trainee: Trainee, pairs: Sequence[Example], step: int, epoch: int) -> StepMetrics:
    """Take one optimiser step: the mean of the loss over all pairs of its micro-batches."""
    started = time.perf_counter()
    settings = job.settings
    mine = job.team.share(pairs)
    part = _gradients(job, trainee, mine, step, pairs)
    while part is None:  # out of memory: the same step, fewer tokens at a time
        lower_budget(job.budget, mine or [shortest(pairs)], trainee)
        if trainee.sharded:
            start_again(job.out / "state", job.budget.tokens, job.team)
        part = _gradients(job, trainee, mine, step, pairs)
    if not trainee.sharded:  # else they were summed in the backward pass
        job.team.sum_gradients(trainee.weights.master)
    with _together(trainee):
        norm = put_together(torch.nn.utils.clip_grad_norm_(trainee.weights.master, settings.max_grad_norm))
    # Up to here nothing has waited for the accelerator. It must before the step, which is not taken where a number is wrong.
    terms, stopped = _gather_terms(job, *part)
    if stopped:
        stop(job, "the loss", step, epoch, stopped, terms)
    grad_norm = float(norm)
    if not math.isfinite(grad_norm):
        stop(job, "the gradient", step, epoch, pairs, terms)
    rate = job.rate(step)
    for group in trainee.optimiser.param_groups:
        group["lr"] = rate
    trainee.optimiser.step()
    trainee.optimiser.zero_grad(set_to_none=True)
    round_to_working(trainee.weights)
    return summarise(
        terms,
        step=step + 1,
        epoch=epoch,
        grad_norm=grad_norm,
        lr=rate,
        tokens=sum(example.tokens for example in pairs),
        seconds=time.perf_counter() - started,
        referenced=settings.needs_reference,
        flops=None if trainee.work is None else trainee.work.step(pairs),
        peak_flops=job.team.size * measured_peak(trainee.dtype, trainee.model.device),
    )


def _gradients(
    job: Job, trainee: Trainee, mine: Sequence[Example], step: int, pairs: Sequence[Example]
) -> tuple[MicroBatches, list[Tensor]] | None:
    """Leave this process's part of the gradient of the mean loss of all `pairs` in the masters; None if memory ran out.

    Returns its micro-batches and their terms (`stack_terms`).
    """
    stacked: list[Tensor] = []
    micros, idle = _passes(job, trainee, mine, pairs)
    try:
        with seeded(job.seed, step, *job.team.key), _together(trainee):
            for micro in micros:
                loss_B, terms = _pair_losses(job, trainee, micro)
                stacked.append(terms)
                torch.autograd.backward(loss_B.sum() / len(pairs))
            for micro in idle:
                torch.autograd.backward(0.0 * _pair_losses(job, trainee, micro)[0].sum())
    except torch.OutOfMemoryError:
        return None  # outside of this block nothing holds on to the graph any more
    return micros, stacked


def _gather_terms(job: Job, micros: MicroBatches, stacked: Sequence[Tensor]) -> tuple[list[PairTerms], list[Example]]:
    """Return the terms of all processes' pairs, and the pairs of each one's first micro-batch whose loss is not finite."""
    terms = read_terms([example.pair_id for micro in micros for example in micro], stacked)
    infinite = {term.pair_id for term in terms if not math.isfinite(term.loss)}
    stopped = next((micro for micro in micros if any(example.pair_id in infinite for example in micro)), ())
    parts = job.team.gather((terms, stopped))
    return [term for part, _ in parts for term in part], [example for _, micro in parts for example in micro]


def _passes(job: Job, trainee: Trainee, mine: Sequence[Example], pairs: Sequence[Example]) -> tuple[MicroBatches, MicroBatches]:
    """Return this process's micro-batches, and those it computes beside them for nothing, because others have more."""
    micros = micro_batches(mine, job.budget.tokens, trainee.batching)
    return micros, idle_passes(len(micros), pairs, job.team) if trainee.sharded else []


def _together(trainee: Trainee) -> AbstractContextManager[None]:
    """Wherever processes put weights together they may find that one is gone."""
    return peers() if trainee.sharded else nullcontext()


def _pair_losses(job: Job, trainee: Trainee, micro: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return the loss of each pair of a micro-batch [B], with its graph, and its terms without (`stack_terms`)."""
    batch = collate(micro, trainee.model.device, trainee.batching)
    policy_R = trainee.root(sequence_logps, batch)
    reference_R = align_reference(job.reference, batch.pair_ids, policy_R.device)
    loss_B, columns = losses(job.settings, pair_sums(micro, policy_R, reference_R, batch.counts_R))
    return loss_B, stack_terms(columns)
