"""What is done in the process that does the work: load an engine, a judge or a trainer, and turn items into records.

Every function here can be sent to another process; none knows of shards. They are the whole meeting of settings and rooms.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.config import JudgeSettings, Recipe
from inward.errors import UsageError
from inward.records import Output, Prompt, Verdict
from inward.running.costs import Cost, append_cost, peak_memory
from inward.running.execute import Advance, Place, devices

if TYPE_CHECKING:
    from inward.engines.engine import Engine
    from inward.judging.judge import Judge
    from inward.sampling.lengths import Length, Measure
    from inward.training.examples import Example, ReferenceLogps
    from inward.training.reference import Reference
    from inward.training.team import Seat


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How many samples a prompt, how often a format error is drawn again, how hot and how long, and whether with `logps`."""

    k: int
    tries: int
    temperature: float
    max_new_tokens: int
    logps: bool = False


def start_engine(recipe: Recipe, model: Path, base: Path | None) -> Engine:
    """Load the engine of a recipe for a model folder, or for an adapter on `base`.

    Raises UsageError where a reference is wanted that it cannot give: with the run's first samples, whatever they are for.
    """
    from inward.engines.transformers.engine import load_engine

    prepare(recipe, recipe.execution.workers)
    engine = load_engine(
        model,
        base=base,
        dtype=recipe.model.dtype,
        rows=recipe.sampling.rows,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    if recipe.training.reference == "sampler" and not engine.gives_logps:
        raise UsageError(
            "training.reference = 'sampler' needs an engine that gives the raw log-probabilities of what it draws, and this "
            "one does not: leave training.reference out, and the reference is computed before training"
        )
    return engine


def draw_outputs(
    recipe: Recipe, arm: str, draws: Draws, seed: int, engine: Engine, prompts: Sequence[Prompt], advance: Advance
) -> list[Output]:
    from inward.engines.engine import Decoding
    from inward.sampling.sample import sample as draw_samples
    from inward.sampling.sample import seed_for

    settings = recipe.sampling
    scaffold = recipe.thought.scaffold if arm == "thinking" else None
    decoding = Decoding(
        temperature=draws.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_new_tokens=draws.max_new_tokens,
        logps=draws.logps,
    )
    return draw_samples(
        prompts,
        engine,
        recipe.thought_format("thinking" if arm == "thinking" else "direct"),
        decoding,
        k=draws.k,
        seed=seed_for(seed, *(prompt.id for prompt in prompts)),
        scaffold_budget=scaffold.budget if scaffold else None,
        tries=draws.tries,
        progress=advance,
    )


def start_judge(recipe: Recipe, settings: JudgeSettings) -> Judge:
    from inward.judging.make import loads_model, make_judge

    if loads_model(settings):
        prepare(recipe, recipe.execution.workers)
    pairing = recipe.pairing  # "auto" is known only once all is judged: until then the middle of what it may come to
    return make_judge(settings, rho=pairing.rho_max / 2 if pairing.rho == "auto" else pairing.rho)


def judge_shard(
    prompts: Sequence[Prompt], measure: Measure | None, judge: Judge, outputs: Sequence[Output], advance: Advance
) -> list[Verdict]:
    """Have a shard's outputs judged; `measure` gives the lengths that length control goes by, characters unless given."""
    from inward.judging.stage import judge_outputs

    wanted = {output.prompt_id for output in outputs}
    lengths = None if measure is None else {id_: length.response for id_, length in measure(outputs).items()}
    verdicts = judge_outputs([prompt for prompt in prompts if prompt.id in wanted], outputs, judge, lengths=lengths)
    advance(len(outputs), 0)
    return verdicts


def find_response_starts(recipe: Recipe, arm: str, model: Path, outputs: Sequence[Output]) -> dict[str, int]:
    """Return by output id how many tokens stand before the response, as the tokenizer of the model that sampled has it."""
    from inward.models.tokenizer import load_tokenizer, plain_text
    from inward.training.examples import response_start

    tokenizer = load_tokenizer(model, trust_remote_code=recipe.model.trust_remote_code)
    marker = recipe.thought_format("thinking" if arm == "thinking" else "direct").response_marker
    return {output.id: response_start(output, marker, functools.partial(plain_text, tokenizer)) for output in outputs}


def start_reference(recipe: Recipe, model: Path) -> Reference:
    from inward.training.reference import load_reference

    prepare(recipe)
    return load_reference(model, recipe.training, dtype=recipe.model.dtype, trust_remote_code=recipe.model.trust_remote_code)


def spent_by(judge: Judge) -> dict[str, Any]:
    """Return what a judge has spent so far, by the names of the fields of a cost row."""
    from dataclasses import asdict

    return {f"judge_{name}": value for name, value in asdict(judge.costs()).items()}


def measure_tokens(model: Path, trust_remote_code: bool, outputs: Sequence[Output]) -> dict[str, Length]:
    """Return the lengths of responses and thoughts in tokens, of outputs sampled by the tokenizer of `model`."""
    from inward.models.tokenizer import plain_text
    from inward.sampling.lengths import token_length

    tokenizer = _tokenizer(model, trust_remote_code)
    special = frozenset(tokenizer.all_special_ids)
    return {output.id: token_length(output, functools.partial(plain_text, tokenizer), special) for output in outputs}


@functools.lru_cache(maxsize=1)
def _tokenizer(model: Path, trust_remote_code: bool) -> Any:
    """Load a tokenizer, once for all shards of a stage."""
    from inward.models.tokenizer import load_tokenizer

    return load_tokenizer(model, trust_remote_code=trust_remote_code)


def reference_shard(
    recipe: Recipe, reference: Reference, examples: Sequence[Example], advance: Advance
) -> list[ReferenceLogps]:
    from inward.training.reference import reference_logps

    rows = reference_logps(reference, examples, recipe.training)
    advance(len(rows), sum(example.tokens for example in examples))
    return rows


def train_model(
    model: Path,
    examples: Sequence[Example],
    reference: Sequence[ReferenceLogps],
    recipe: Recipe,
    out: Path,
    seed: int,
    place: Place,
    costs: Path,
    seat: Seat | None,
    advance: Advance,
) -> None:
    """Train, alone or as the process that takes `seat`; what it came to is booked by the main one."""
    from inward.training.metrics import StepMetrics, read_metrics
    from inward.training.team import ALONE, seated
    from inward.training.train import train

    prepare(recipe, seat.size if seat else 1)

    def on_step(step: StepMetrics) -> None:
        advance(1, step.tokens)

    with seated(seat) if seat else nullcontext(ALONE) as team:
        train(
            model,
            examples,
            reference,
            recipe.training,
            out,
            seed=seed,
            dtype=recipe.model.dtype,
            trust_remote_code=recipe.model.trust_remote_code,
            name=f"{recipe.training.tracker_run or costs.parent.name}-{place.arm}-iter_{place.iteration:03d}",
            on_step=on_step,
            team=team,
            shard=recipe.execution.shard,
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
        device_seconds=seconds * devices() * team.size,
        items=len(examples),
        tokens=sum(step.tokens for step in steps),
        judge_calls=0,
        peak_memory=peak_memory(),
    )
    append_cost(costs, cost)


def prepare(recipe: Recipe, workers: int = 1) -> None:
    """Set up torch in the process that does the work: its share of the processor, and no progress bars but ours."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    # peft asks transformers for an attribute that the latter has renamed; nothing a user could act on.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    threads: int = recipe.execution.threads or max(1, _all_threads() // workers)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@functools.cache
def _all_threads() -> int:
    """The threads torch starts with. Asked once: `prepare` changes the number for the stages after it in this process."""
    import torch

    return torch.get_num_threads()
