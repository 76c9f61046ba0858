"""The stages of the loop, tied to the run directory: which room does the work, and where its records are kept.

Rooms know nothing of folders or processes; this module is where the two meet. Each function does what is missing and
returns what is stored.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from inward.config import CombinedJudge
from inward.hardware import give_back_memory
from inward.records import Evaluation, Output, Pair, Prompt, Score, Verdict
from inward.running.costs import read_costs
from inward.running.execute import in_processes
from inward.running.pieces import judge_shards, reference_shards, sample_shards, train_together, whole
from inward.running.run import ArmIteration, Run
from inward.running.rundir import RunDir
from inward.running.work import (
    Draws,
    find_response_starts,
    measure_tokens,
    train_model,
)
from inward.storage import read_json, write_json

if TYPE_CHECKING:
    from inward.sampling.lengths import Measure
    from inward.training.examples import Example, ReferenceLogps


def keep_prompts(at: ArmIteration, prompts: Sequence[Prompt]) -> None:
    whole(at, "prompts", Prompt, prompts, lambda items: list(items), identify=lambda prompt: prompt.id)


def sample(at: ArmIteration, prompts: Sequence[Prompt], model: Path) -> list[Output]:
    """Draw K outputs a prompt from M_t."""
    settings = at.run.recipe.sampling
    draws = Draws(
        k=settings.k,
        tries=1,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        logps=at.run.recipe.training.reference == "sampler",
    )
    return sample_shards(at, at.folder / "outputs", prompts, model, draws, stage="outputs", purpose="outputs")


def judge(at: ArmIteration, prompts: Sequence[Prompt], outputs: Sequence[Output], model: Path) -> list[Verdict]:
    """Have the responses judged, whole groups of K together; `judges.json` says on how many prompts each of several ruled."""
    from inward.judging.stage import rulers

    verdicts = judge_shards(
        at, at.folder / "verdicts", prompts, outputs, at.run.recipe.judge, stage="verdicts", measure=_measure(at, model)
    )
    if isinstance(at.run.recipe.judge, CombinedJudge):
        write_json(at.folder / "judges.json", rulers(verdicts))
    return verdicts


def score(at: ArmIteration, outputs: Sequence[Output], verdicts: Sequence[Verdict]) -> list[Score]:
    from inward.judging.make import battle_prior
    from inward.judging.stage import require_some_scores, score_outputs
    from inward.trust.limits import check_limits

    work = partial(score_outputs, outputs, prior=battle_prior(at.run.recipe.judge))
    scores = whole(at, "scores", Score, verdicts, work, identify=lambda v: v.id)
    require_some_scores(scores)
    check_limits(outputs, verdicts, scores, at.run.recipe.judge_limits, where=f"{at.arm} iteration {at.t}")
    return scores


def pair(at: ArmIteration, outputs: Sequence[Output], scores: Sequence[Score], model: Path) -> list[Pair]:
    """Make the pairs; `pairing.json` counts them and says why the other prompts gave none."""
    from inward.errors import TrainingError
    from inward.pairing.pair import Pairing, describe, pair_outputs

    settings, seed, measure = at.run.recipe.pairing, at.seed("pairs"), _measure(at, model)

    def work(items: Sequence[Score]) -> list[Pair]:
        lengths = None if measure is None else measure(outputs)
        pairing: Pairing = pair_outputs(outputs, items, settings, seed=seed, lengths=lengths)
        write_json(at.folder / "pairing.json", describe(pairing, outputs, lengths=lengths))
        return list(pairing.pairs)

    pairs = whole(at, "pairs", Pair, scores, work, identify=lambda score: score.output_id)
    if not pairs:
        skipped = read_json(at.folder / "pairing.json")["skipped"]
        reasons = "; ".join(f"{reason}: {count}" for reason, count in sorted(skipped.items()))
        raise TrainingError(
            f"{at.arm} iteration {at.t}: no prompt gave a pair ({reasons}). Use prompts on which the model's outputs differ, "
            "a larger sampling.k, or a judge with finer scores; then start a new run"
        )
    return pairs


def examples(at: ArmIteration, pairs: Sequence[Pair], outputs: Sequence[Output], model: Path) -> list[Example]:
    """Turn the pairs into what training takes; `model` is the one that sampled, whose tokenizer knows thought from response."""
    from inward.training.examples import build_examples, needs_parts

    settings = at.run.recipe.training
    if not needs_parts(settings):
        return build_examples(pairs, outputs, settings)
    paired = {id for pair in pairs for id in (pair.chosen_id, pair.rejected_id)}
    starts = find_response_starts(at.run.recipe, at.arm, model, [output for output in outputs if output.id in paired])
    return build_examples(pairs, outputs, settings, starts)


def reference(
    at: ArmIteration, pairs: Sequence[Pair], outputs: Sequence[Output], examples: Sequence[Example], model: Path
) -> list[ReferenceLogps]:
    """Store the reference's log-probabilities before the first step; none for an objective that has no reference.

    With those of the sampler, `reference.json` says how far they are from those of `model` on a few pairs.
    """
    from inward.training.examples import ReferenceLogps
    from inward.training.sampled import discrepancy, require_rounding, sampled_logps, to_check

    settings = at.run.recipe.training
    if not settings.needs_reference:
        return []
    if settings.reference != "sampler":
        return reference_shards(at, "reference", examples, model)
    work = partial(sampled_logps, pairs, outputs)
    noted = whole(at, "reference", ReferenceLogps, examples, work, identify=lambda example: example.pair_id)
    checked = to_check(examples)
    found = discrepancy(checked, noted, reference_shards(at, "reference_check", checked, model))
    write_json(at.folder / "reference.json", {"sampler_discrepancy": asdict(found)})
    where = f"{at.arm} iteration {at.t}"
    at.run.reporter.say(
        f"{where}: log-probabilities of the sampler differ from the reference's by {found.mean:.2g} nats a sequence, at most "
        f"{found.largest:.2g}, or {found.per_token:.2g} a token ({found.pairs} pairs)"
    )
    require_rounding(found, where)
    return noted


def train(at: ArmIteration, model: Path, examples: Sequence[Example], reference: Sequence[ReferenceLogps]) -> list[Path]:
    """Train from M_t; return one checkpoint an epoch, fewer than `training.epochs` where it stopped early."""
    from inward.training.batches import steps_per_epoch
    from inward.training.checkpoint import stored_epochs
    from inward.training.early_stop import hold_out

    run, out = at.run, at.folder / "checkpoints"
    settings = run.recipe.training
    label = f"{at.arm} iteration {at.t}: training"
    trained, _ = hold_out(examples, settings, seed=at.seed("training"))
    steps = steps_per_epoch(trained, settings) * settings.epochs
    run.reporter.begin(label, steps, "steps")
    call = (
        model,
        tuple(examples),
        tuple(reference),
        run.recipe,
        out,
        at.seed("training"),
        at.place("training"),
        run.dir.costs,
    )
    if run.processes > 1:
        train_together(run, call, label, steps)
    elif run.isolate:
        in_processes(train_model, [(*call, None)], advance=run.reporter.advance, label=label)
    else:
        train_model(*call, None, run.reporter.advance)
        give_back_memory()
    run.reporter.end()
    return stored_epochs(out)


def validate(
    at: ArmIteration, model: Path, prompts: Sequence[Prompt], *, base: Path | None = None, name: str | None = None
) -> Evaluation:
    """Measure a model on the validation prompts with fresh samples; a format error is sampled again, up to a limit."""
    name = name or model.name
    return measure(at, at.folder / "validation" / name, model, prompts, base=base, name=name, purpose="validation")


def measure(
    at: ArmIteration,
    folder: Path,
    model: Path,
    prompts: Sequence[Prompt],
    *,
    name: str,
    purpose: str,
    base: Path | None = None,
    max_new_tokens: int | None = None,
) -> Evaluation:
    """Sample, judge and sum up a model on a set of prompts; everything is stored under `folder`.

    The seed of the samples depends on the iteration and the purpose only: both arms and all checkpoints share it.
    """
    from inward.evaluation.summarise import evaluate
    from inward.judging.make import lowest_score
    from inward.judging.stage import require_some_scores, score_outputs
    from inward.trust.limits import check_limits

    settings, recipe = at.run.recipe.validation, at.run.recipe
    draws = Draws(
        k=settings.samples,
        tries=settings.tries,
        temperature=settings.temperature,
        max_new_tokens=max_new_tokens or recipe.sampling.max_new_tokens,
    )
    stage = f"{purpose} of {name}"
    outputs = sample_shards(at, folder / "outputs", prompts, model, draws, stage=stage, purpose=purpose, base=base)
    verdicts = judge_shards(at, folder / "verdicts", prompts, outputs, recipe.validation_judge, stage=f"judging, {stage}")
    scores = score_outputs(outputs, verdicts)
    if at.t == 0 or any(output.response is not None for output in outputs):
        require_some_scores(scores)  # but a checkpoint that lost the format altogether is only one not to choose
    if at.t == 0 and purpose == "validation":
        check_limits(outputs, verdicts, scores, recipe.judge_limits, where=f"{at.arm} {stage}")
    lowest = lowest_score(recipe.validation_judge)
    evaluation = evaluate(name, at.arm, outputs, scores, settings, verdicts=verdicts, lowest=lowest)
    write_json(folder / "evaluation.json", asdict(evaluation))
    return evaluation


def measure_seed(run: Run, arm: str, seed: Path, prompts: Sequence[Prompt]) -> None:
    """Measure M_0 in one arm's format: iteration 0, what every later figure is compared with."""
    here = ArmIteration(run, arm, 0)
    if not here.finished:
        evaluation = validate(here, seed, prompts, name="seed")
        write_json(here.folder / "evaluation.json", {"chosen": "seed", "evaluations": {"seed": asdict(evaluation)}})
        _report(here, evaluation)


def promote(at: ArmIteration, checkpoints: Sequence[Path], evaluations: Sequence[Evaluation], *, base: Path) -> Path:
    """Make the best checkpoint the next model, note why, and delete what is no longer needed."""
    from inward.evaluation.summarise import choose
    from inward.training.weights import promote as make_model

    best = choose(evaluations)
    if not at.model.exists():
        make_model(checkpoints[best], base, at.model, trust_remote_code=at.run.recipe.model.trust_remote_code)
    write_json(
        at.folder / "evaluation.json",
        {"chosen": checkpoints[best].name, "evaluations": {item.model: asdict(item) for item in evaluations}},
    )
    _report(at, evaluations[best])
    return tidy(at)


def tidy(at: ArmIteration) -> Path:
    """Delete the checkpoints of a finished iteration, but for adapters, which are small; return its model."""
    for checkpoint in sorted((at.folder / "checkpoints").glob("epoch_*")):
        if not (checkpoint / "adapter_config.json").exists():
            shutil.rmtree(checkpoint)
    return at.model


def compare_arms(run: Run, t: int) -> None:
    """Store thinking against direct on the same validation prompts, with a paired interval."""
    from inward.evaluation.summarise import compare

    if set(run.recipe.arms) != {"thinking", "direct"}:
        return
    thinking, direct = (chosen_evaluation(run.dir, arm, t) for arm in ("thinking", "direct"))
    comparison = compare(thinking, direct, run.recipe.validation)
    write_json(run.dir.comparison(t), asdict(comparison))


def chosen_evaluation(directory: RunDir, arm: str, t: int) -> Evaluation:
    """Return the stored evaluation of the model that iteration t chose (t = 0: the seed)."""
    stored = read_json(directory.iteration(arm, t) / "evaluation.json")
    return Evaluation(**stored["evaluations"][stored["chosen"]])


def summarise(run: Run) -> None:
    """Write `summary.json`: what the run came to, for people and programs that want one file."""
    from inward.running.summary import summary

    write_json(run.dir.summary, summary(run.dir, run.recipe, read_costs(run.dir.costs)))


def _report(at: ArmIteration, evaluation: Evaluation) -> None:
    at.run.reporter.say(
        f"{at.arm} iteration {at.t}: validation score {evaluation.score:.3f} "
        f"[{evaluation.low:.3f}, {evaluation.high:.3f}], {evaluation.model}"
    )


def _measure(at: ArmIteration, model: Path) -> Measure | None:
    """Return what measures outputs in the unit that the recipe asks for, None for characters."""
    if at.run.recipe.pairing.length == "characters":
        return None
    return partial(measure_tokens, model, at.run.recipe.model.trust_remote_code)
