"""Thought Preference Optimization (Wu et al. 2024, arXiv 2410.10630): the whole algorithm on one page.

    inward run recipes/demo.toml

Every arm goes through the same steps with the same prompts, seeds, judge and loss; the direct arm has no thought prompt.
Each call below is one stage. What a stage has stored it never does again, so a run that was killed continues by running
this page from the top. Our deviations from the paper:

- a seed that does not follow the thought prompt can be *scaffolded*: the engine writes the markers (docs/design.md);
- the reference is M_t, as in the paper; `training.reference = "seed"` takes M_0 instead, "sampler" what M_t noted as it drew;
- the checkpoint is chosen on fresh validation samples, and the seed is measured the same way as iteration 0.
"""

from __future__ import annotations

from pathlib import Path

from inward.records import Prompt
from inward.running import inputs, stages
from inward.running.run import ArmIteration, Run


def run_loop(run: Run) -> None:
    """Train every arm of the recipe from the seed M_0 to M_T."""
    seed = inputs.seed_model(run)
    draw = inputs.draw_prompts(run, seed)
    models = dict.fromkeys(run.recipe.arms, seed)
    for arm in run.recipe.arms:
        stages.measure_seed(run, arm, seed, draw.validation)
    stages.compare_arms(run, 0)
    for t, prompts in enumerate(draw.iterations, start=1):
        for arm in run.recipe.arms:
            models[arm] = iterate(run, arm, t, models[arm], seed, prompts, draw.validation)
        stages.compare_arms(run, t)
    stages.summarise(run)


def iterate(
    run: Run, arm: str, t: int, model: Path, seed: Path, prompts: tuple[Prompt, ...], validation: tuple[Prompt, ...]
) -> Path:
    """One iteration: from M_t, prompts that no earlier iteration used, to M_{t+1}."""
    here = ArmIteration(run, arm, t)
    if here.finished:
        return stages.tidy(here)
    stages.keep_prompts(here, prompts)
    outputs = stages.sample(here, prompts, model)  # K outputs z, y for each p + x
    verdicts = stages.judge(here, prompts, outputs, model)  # of the responses y only
    scores = stages.score(here, outputs, verdicts)
    pairs = stages.pair(here, outputs, scores, model)  # best against worst, length-controlled
    examples = stages.examples(here, pairs, outputs, model)  # thought and response together
    reference = stages.reference(here, pairs, outputs, examples, seed if run.recipe.training.reference == "seed" else model)
    checkpoints = stages.train(here, model, examples, reference)  # DPO or its kin
    evaluations = [stages.validate(here, checkpoint, validation, base=model) for checkpoint in checkpoints]
    return stages.promote(here, checkpoints, evaluations, base=model)  # the best becomes M_{t+1}
