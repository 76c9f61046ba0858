"""Thought Preference Optimization (Wu et al. 2024, arXiv 2410.10630): the whole algorithm on one page.

    inward run recipes/demo.toml

Every arm goes through the same steps with the same prompts, seeds, judge and loss; the direct arm has no thought prompt.
Each call below is one stage. What a stage has stored it never does again, so a run that was killed continues by running
this page from the top. Our deviations from the paper:

- a seed that does not follow the thought prompt can be *scaffolded*: the engine writes the markers (docs/design.md);
- the reference is M_t, as in the paper; `training.reference = "seed"` takes M_0 instead, "sampler" what M_t noted as it drew;
- the checkpoint is chosen on fresh validation samples, and the seed is measured the same way as iteration 0;
- the loop may turn as often as one likes: many short iterations (arXiv 2506.21495) carry the optimiser on
  (`training.carry_optimiser`), validate now and then (`validation.every`) and may use prompts again (`prompts.recur`).
"""

from __future__ import annotations

from pathlib import Path

from inward.config import Arm
from inward.records import Prompt
from inward.stages import inputs, judging, pairing, sampling, training, validation
from inward.stages import prompts as prompt_stage
from inward.stages import reference as reference_stage
from inward.stages.run import ArmIteration, Run
from inward.stages.summary import summarise


def run_loop(run: Run) -> None:
    """Train every arm of the recipe from the seed M_0 to M_T."""
    seed = inputs.seed_model(run)
    draw = inputs.draw_prompts(run, seed)
    models = dict.fromkeys(run.recipe.arms, seed)
    for arm in run.recipe.arms:
        validation.measure_seed(run, arm, seed, draw.validation)
    validation.compare_arms(run, 0)
    for t, prompts in enumerate(draw.iterations, start=1):
        for arm in run.recipe.arms:
            models[arm] = iterate(run, arm, t, models[arm], seed, prompts, draw.validation)
        validation.compare_arms(run, t)
    summarise(run)


def iterate(
    run: Run, arm: Arm, t: int, model: Path, seed: Path, prompts: tuple[Prompt, ...], held_out: tuple[Prompt, ...]
) -> Path:
    """One iteration: from M_t and its prompts to M_{t+1}."""
    now = ArmIteration(run, arm, t)
    if now.finished:
        return validation.settle(now, held_out)
    prompt_stage.keep_prompts(now, prompts)
    outputs = sampling.sample(now, prompts, model)  # K outputs z, y for each p + x
    verdicts = judging.judge(now, prompts, outputs, model)  # of the responses y only
    scores = judging.score(now, outputs, verdicts)
    pairs = pairing.pair(now, outputs, scores, model)  # best against worst, length-controlled
    if not pairs:
        return validation.keep_model(now, held_out, base=model)  # M_{t+1} is M_t
    examples = training.examples(now, pairs, outputs, model)  # thought and response together
    anchor = seed if run.recipe.training.reference == "seed" else model
    reference = reference_stage.reference(now, pairs, outputs, examples, anchor)
    checkpoints = training.train(now, model, examples, reference)  # DPO or its kin
    evaluations = validation.validate_all(now, checkpoints, held_out, base=model)  # none but at every m-th iteration
    return validation.promote(now, checkpoints, evaluations, base=model)  # the best becomes M_{t+1}
