"""Models to figures on the validation prompts, and the choice of the checkpoint that becomes the next model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inward.config import Arm
from inward.records import Evaluation, Prompt
from inward.sampling.draws import Draws
from inward.stages.judging import judge_measured
from inward.stages.pairing import without_pairs
from inward.stages.run import ArmIteration, Run
from inward.stages.sampling import draw_outputs
from inward.storage import move, remove, stand_in, write_json

if TYPE_CHECKING:
    from inward.evaluation.win_rates import Baseline

UNCHANGED = "unchanged"
"""The name, in `evaluation.json`, of a model that an iteration without pairs went on with."""


def measure_seed(run: Run, arm: Arm, seed: Path, prompts: Sequence[Prompt]) -> None:
    """Measure M_0 in one arm's format: iteration 0, what every later figure is compared with."""
    now = ArmIteration(run, arm, 0)
    if not now.finished:
        evaluation = validate(now, seed, prompts, name="seed")
        _conclude(now, "seed", [evaluation])


def validate(
    now: ArmIteration, model: Path, prompts: Sequence[Prompt], *, base: Path | None = None, name: str | None = None
) -> Evaluation:
    """Measure a model on the validation prompts with fresh samples; a format error is sampled again, up to a limit."""
    name = name or model.name
    folder, baseline = now.folder / "validation" / name, validation_baseline(now.run, prompts)
    return measure(now, folder, model, prompts, base=base, name=name, purpose="validation", baseline=baseline)


def validation_baseline(run: Run, prompts: Sequence[Prompt]) -> Baseline | None:
    """Return the answers that a pairwise judge compares models with; None for a judge that scores each by itself.

    They are those of the file `validation.baseline`, else the seed's in the direct format. The direct arm's own measurement of
    the seed has the same outputs; without that arm they are drawn for this alone.
    """
    from inward.evaluation.measurement import needs_baseline, read_baseline
    from inward.evaluation.win_rates import answers_of
    from inward.stages.inputs import seed_model

    if not needs_baseline(run.recipe.validation_judge):
        return None
    if (path := run.recipe.validation.baseline) is not None:
        return read_baseline(path, prompts)
    first, draws = ArmIteration(run, "direct", 0), draws_of(run)
    folder = first.folder / "validation" / "seed" / "outputs"
    seed = seed_model(run)
    outputs = draw_outputs(first, folder, prompts, seed, draws, stage="validation of seed", purpose="validation")
    return answers_of(outputs)


def draws_of(run: Run, max_new_tokens: int | None = None) -> Draws:
    """Return how a model's outputs are drawn to measure it."""
    settings = run.recipe.validation
    return Draws(
        k=settings.samples,
        tries=settings.tries,
        temperature=settings.temperature,
        max_new_tokens=max_new_tokens or run.recipe.sampling.max_new_tokens,
    )


def measure(
    now: ArmIteration,
    folder: Path,
    model: Path,
    prompts: Sequence[Prompt],
    *,
    name: str,
    purpose: str,
    base: Path | None = None,
    max_new_tokens: int | None = None,
    baseline: Baseline | None = None,
) -> Evaluation:
    """Sample, judge and sum up a model on a set of prompts; everything is stored under `folder`."""
    from inward.evaluation.measurement import Measurement, evaluate_measured, score_measured
    from inward.judging.stage import require_some_scores
    from inward.trust.limits import check_limits

    recipe, draws = now.run.recipe, draws_of(now.run, max_new_tokens)
    measurement = Measurement(prompts=tuple(prompts), draws=draws, judge=recipe.validation_judge, baseline=baseline)
    stage = f"{purpose} of {name}"
    outputs = draw_outputs(now, folder / "outputs", prompts, model, draws, stage=stage, purpose=purpose, base=base)
    verdicts = judge_measured(now, folder / "verdicts", measurement, outputs, stage=f"judging, {stage}")
    scores = score_measured(measurement, outputs, verdicts)
    if now.t == 0 or any(output.response is not None for output in outputs):
        require_some_scores(scores)  # but a checkpoint that lost the format altogether is only one not to choose
    if now.t == 0 and purpose == "validation" and baseline is None:
        check_limits(outputs, verdicts, scores, recipe.judge_limits, where=f"{now.arm} {stage}", judge=recipe.validation_judge)
    evaluation = evaluate_measured(measurement, name, now.arm, outputs, verdicts, scores, recipe.validation)
    write_json(folder / "evaluation.json", asdict(evaluation))
    return evaluation


def validate_all(now: ArmIteration, checkpoints: Sequence[Path], prompts: Sequence[Prompt], *, base: Path) -> list[Evaluation]:
    """Measure every checkpoint of an iteration that is validated (`validation.every`), none of another."""
    if not now.run.recipe.validates(now.t):
        return []
    return [validate(now, checkpoint, prompts, base=base) for checkpoint in checkpoints]


def promote(now: ArmIteration, checkpoints: Sequence[Path], evaluations: Sequence[Evaluation], *, base: Path) -> Path:
    """Make the best checkpoint the next model, or the last where none was measured, and note why.

    A whole model is not copied but renamed, once the choice is noted: then nobody looks for it among the checkpoints.
    """
    from inward.evaluation.summarise import choose
    from inward.training.weights import merge_adapter

    best = checkpoints[choose(evaluations) if evaluations else -1]
    if _is_adapter(best) and not now.model.exists():
        merge_adapter(base, best, now.model, trust_remote_code=now.run.recipe.model.trust_remote_code)
    _conclude(now, best.name, evaluations)
    return tidy(now)


def keep_model(now: ArmIteration, prompts: Sequence[Prompt], *, base: Path) -> Path:
    """Go on with the model as it is, since there was no pair to train on; no byte of it is copied where links can be had."""
    links = ((base, now.model), (now.before.optimiser, now.optimiser))
    for folder, target in links:
        if folder.exists() and not target.exists():
            stand_in(folder, target)
    evaluations = [validate(now, base, prompts, name=UNCHANGED)] if now.run.recipe.validates(now.t) else []
    _conclude(now, UNCHANGED, evaluations, without_pairs_in_a_row=without_pairs(now))
    return tidy(now)


def settle(now: ArmIteration, prompts: Sequence[Prompt]) -> Path:
    """Do what a finished iteration still lacks, and return its model.

    The last one of a run is validated, also where it was not when there were to be more iterations after it.
    """
    model = tidy(now)
    if now.t == now.run.recipe.iterations and now.evaluation is None:
        chosen, streak = now.outcome["chosen"], now.without_pairs
        _conclude(now, chosen, [validate(now, model, prompts, name=chosen)], without_pairs_in_a_row=streak)
    return model


def tidy(now: ArmIteration) -> Path:
    """Put the chosen checkpoint where the next iteration finds it, with what its training goes on from; delete all others.

    Adapters, which are small, are kept. So are the latest models, with `execution.keep_models`. Returns the model.
    """
    checkpoints, chosen = now.folder / "checkpoints", now.outcome["chosen"]
    best, state = checkpoints / chosen, checkpoints / "optimiser" / chosen
    if best.exists() and not _is_adapter(best) and not now.model.exists():
        move(best, now.model)
    if state.exists() and not now.optimiser.exists():
        move(state, now.optimiser)
    for checkpoint in sorted(checkpoints.glob("epoch_*")):
        if not _is_adapter(checkpoint):
            remove(checkpoint)
    remove(checkpoints / "optimiser")
    remove(now.before.optimiser)
    for t in superfluous(now):
        remove(replace(now, t=t).model)
    return now.model


def superfluous(now: ArmIteration) -> list[int]:
    """Return the iterations up to this finished one whose models are not to be kept (`execution.keep_models`)."""
    keep = now.run.recipe.execution.keep_models
    if keep is None:
        return []
    evaluations = {t: replace(now, t=t).evaluation for t in range(1, now.t + 1)}
    scores = {t: evaluation.score for t, evaluation in evaluations.items() if evaluation and evaluation.score is not None}
    kept = {max(scores), max(scores, key=scores.__getitem__)} if scores else set()
    return [t for t in range(1, now.t - keep + 1) if t not in kept]


def compare_arms(run: Run, t: int) -> None:
    """Store thinking against direct on the same validation prompts, with a paired interval, where both were validated."""
    from inward.evaluation.summarise import compare

    if set(run.recipe.arms) != {"thinking", "direct"}:
        return
    thinking, direct = (ArmIteration(run, arm, t).evaluation for arm in ("thinking", "direct"))
    if thinking is not None and direct is not None:
        comparison = compare(thinking, direct, run.recipe.validation)
        write_json(run.dir.comparison(t), asdict(comparison))


def _is_adapter(checkpoint: Path) -> bool:
    return (checkpoint / "adapter_config.json").exists()


def _conclude(now: ArmIteration, chosen: str, evaluations: Sequence[Evaluation], *, without_pairs_in_a_row: int = 0) -> None:
    """Write `evaluation.json`, which finishes an iteration, and say what the chosen model came to."""
    by_name = {evaluation.model: evaluation for evaluation in evaluations}
    measured = {name: asdict(evaluation) for name, evaluation in by_name.items()}
    streak = {"without_pairs_in_a_row": without_pairs_in_a_row} if without_pairs_in_a_row else {}
    write_json(now.folder / "evaluation.json", {"chosen": chosen, "evaluations": measured, **streak})
    if chosen in by_name:
        _report(now, by_name[chosen])


def _report(now: ArmIteration, evaluation: Evaluation) -> None:
    now.run.reporter.say(
        f"{now.name}: validation score {evaluation.score:.3f} [{evaluation.low:.3f}, {evaluation.high:.3f}], {evaluation.model}"
    )
