"""Models to figures on the validation prompts, and the choice of the checkpoint that becomes the next model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from inward.config import Arm
from inward.records import Evaluation, Prompt
from inward.runs.directory import RunDir
from inward.sampling.draws import Draws
from inward.stages.judging import judge_measured
from inward.stages.run import ArmIteration, Run
from inward.stages.sampling import draw_outputs
from inward.storage import read_json, write_json

if TYPE_CHECKING:
    from inward.evaluation.win_rates import Baseline


def measure_seed(run: Run, arm: Arm, seed: Path, prompts: Sequence[Prompt]) -> None:
    """Measure M_0 in one arm's format: iteration 0, what every later figure is compared with."""
    now = ArmIteration(run, arm, 0)
    if not now.finished:
        evaluation = validate(now, seed, prompts, name="seed")
        write_json(now.folder / "evaluation.json", {"chosen": "seed", "evaluations": {"seed": asdict(evaluation)}})
        _report(now, evaluation)


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


def promote(now: ArmIteration, checkpoints: Sequence[Path], evaluations: Sequence[Evaluation], *, base: Path) -> Path:
    """Make the best checkpoint the next model, note why, and delete what is no longer needed."""
    from inward.evaluation.summarise import choose
    from inward.training.weights import promote as make_model

    best = choose(evaluations)
    if not now.model.exists():
        make_model(checkpoints[best], base, now.model, trust_remote_code=now.run.recipe.model.trust_remote_code)
    write_json(
        now.folder / "evaluation.json",
        {"chosen": checkpoints[best].name, "evaluations": {item.model: asdict(item) for item in evaluations}},
    )
    _report(now, evaluations[best])
    return tidy(now)


def tidy(now: ArmIteration) -> Path:
    """Delete the checkpoints of a finished iteration, but for adapters, which are small; return its model."""
    for checkpoint in sorted((now.folder / "checkpoints").glob("epoch_*")):
        if not (checkpoint / "adapter_config.json").exists():
            shutil.rmtree(checkpoint)
    return now.model


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


def _report(now: ArmIteration, evaluation: Evaluation) -> None:
    now.run.reporter.say(
        f"{now.name}: validation score {evaluation.score:.3f} [{evaluation.low:.3f}, {evaluation.high:.3f}], {evaluation.model}"
    )
