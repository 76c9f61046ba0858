"""What a run starts from: its seed model and its prompts, checked before anything costs time, and pinned (`pins`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.config import Arm, Recipe, RoutedJudge
from inward.errors import UsageError
from inward.records import Prompt
from inward.stages.engine import engine_of, sampler_needs
from inward.stages.findings import Findings
from inward.stages.pins import pin
from inward.stages.run import ArmIteration, Run
from inward.thought import ThoughtFormat

if TYPE_CHECKING:
    from inward.prompts.draw import Draw


def seed_model(run: Run) -> Path:
    """Return the folder of M_0, fetching an embedded model first."""
    from inward.models.names import local_folder

    settings = run.recipe.model
    return local_folder(
        settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code, report=run.reporter.say
    )


def draw_prompts(run: Run, seed: Path) -> Draw:
    """Load, check and deal out all prompts of the run, and look for its judge and packages, before anything else costs time.

    All that is amiss is said together.
    """
    recipe = run.recipe
    if sampler_needs(recipe).model and not all(ArmIteration(run, arm, 0).finished for arm in recipe.arms):
        engine = engine_of(recipe, seed, today=run.started)
        run.executor.prepare(engine, sampler_needs(recipe))  # workers load it while this process reads the prompts
    findings = Findings()
    dealt = inspect(run, seed, findings).draw
    findings.require_none()
    assert dealt is not None, "without a problem there are prompts"
    for note in findings.notes:
        run.reporter.say(note)
    pin(run, seed, dealt)
    return dealt


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a run starts from, as far as it could be looked at: None where a problem hides it.

    `model` is the seed's folder, whose configuration can be read. `lengths` are the tokens of each prompt text as an arm asks
    it.
    """

    model: Path | None
    prompts: tuple[Prompt, ...] | None
    draw: Draw | None
    lengths: Mapping[Arm, Mapping[str, int]]


def inspect(run: Run, seed: Path | None, findings: Findings) -> Inputs:
    """Look at all that a run starts from, weights excepted: prompts, the model's configuration and tokenizer, judges, memory.

    What is amiss goes to `findings`, and so does what a person should know of. `seed` is the model's folder; None where there
    is none, so that nothing is said of it.
    """
    from inward.judging.make import check_judge
    from inward.models.tokenizer import load_config
    from inward.prompts import load_prompts
    from inward.prompts.draw import check_lengths, draw
    from inward.training.trackers import require_packages

    recipe, attempt = run.recipe, findings.attempt
    loaded = attempt(partial(load_prompts, recipe.prompts))
    prompts = None if loaded is None else loaded.prompts
    findings.notes += [] if loaded is None else loaded.notes
    trusted = recipe.model.trust_remote_code
    if seed is not None and attempt(partial(load_config, seed, trust_remote_code=trusted)) is None:
        seed = None  # nothing else can be said of a model without a configuration
    reader = None if seed is None else _inspect_model(run, seed, findings)
    if prompts is not None and reader is not None:
        limit = min(recipe.prompts.max_tokens, reader.context - recipe.sampling.max_new_tokens)
        checked = attempt(partial(check_lengths, prompts, reader.longest, limit, recipe.prompts.unusable))
        prompts = None if checked is None else checked[0]
        findings.notes += [] if checked is None else checked[1]
    attempt(partial(require_packages, recipe.training))
    for judge in [recipe.judge] if recipe.validation.judge is None else [recipe.judge, recipe.validation.judge]:
        if prompts is not None or not isinstance(judge, RoutedJudge):  # whether routes are right only prompts can tell
            attempt(partial(check_judge, judge, prompts or ()))
    deal = partial(
        draw,
        prompts or (),
        per_iteration=recipe.prompts.per_iteration,
        validation=recipe.prompts.validation,
        iterations=recipe.iterations,
        seed=recipe.seed,
        recur=recipe.prompts.recur,
    )
    dealt = None if prompts is None else attempt(deal)
    return Inputs(model=seed, prompts=prompts, draw=dealt, lengths={} if reader is None else reader.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """The seed model's tokenizer and context. It keeps the tokens of each text that it counts, by the arm that asks it."""

    tokenizer: Any
    context: int
    formats: Mapping[Arm, ThoughtFormat]
    today: date
    lengths: dict[Arm, dict[str, int]]

    def longest(self, text: str) -> int:
        """Return the tokens of a prompt in the arm that takes most for it."""
        from inward.models.tokenizer import encode_chat
        from inward.thought import messages

        for arm, fmt in self.formats.items():
            self.lengths[arm][text] = len(encode_chat(self.tokenizer, messages(fmt, text), today=self.today))
        return max(lengths[text] for lengths in self.lengths.values())


def _inspect_model(run: Run, seed: Path, findings: Findings) -> _Reader | None:
    """Look at a model's architecture, its tokenizer and the memory that training takes. None without a tokenizer."""
    from inward.models.tokenizer import load_context, load_tokenizer

    trusted, attempt = run.recipe.model.trust_remote_code, findings.attempt
    findings.notes += attempt(partial(_check_architecture, run.recipe, seed)) or []
    _inspect_memory(run, seed, findings)
    tokenizer = attempt(partial(load_tokenizer, seed, trust_remote_code=trusted))
    if tokenizer is None:
        return None
    formats: dict[Arm, ThoughtFormat] = {arm: run.recipe.thought_format(arm) for arm in run.recipe.arms}
    attempt(partial(check_markers, tokenizer, list(formats.values())))
    context = load_context(seed, tokenizer, trust_remote_code=trusted)
    lengths: dict[Arm, dict[str, int]] = {arm: {} for arm in formats}
    return _Reader(tokenizer=tokenizer, context=context, formats=formats, today=run.started, lengths=lengths)


def _inspect_memory(run: Run, seed: Path, findings: Findings) -> None:
    from inward.training.memory import check_memory

    recipe, processes = run.recipe, findings.attempt(lambda: run.training_processes)
    if processes is None:
        return
    findings.attempt(
        partial(
            check_memory,
            seed,
            recipe.training,
            dtype=recipe.model.dtype,
            tokens=recipe.training.batch_tokens,
            processes=processes,
            sharded=recipe.execution.shard and processes > 1,
            trust_remote_code=recipe.model.trust_remote_code,
        )
    )


def _check_architecture(recipe: Recipe, seed: Path) -> list[str]:
    """Raise UsageError for a model that cannot be sampled or trained rightly; return where a slower way is taken, and why.

    How it is sampled matters only to our own engine: others have ways of their own.
    """
    from inward.training.support import check_architecture

    sampled_here = recipe.sampling.engine == "transformers"
    support = check_architecture(seed, trust_remote_code=recipe.model.trust_remote_code, sampled_here=sampled_here)
    if support is None:
        return []
    ways = [f"training is {support.training}"] if support.training != "packed" else []
    if sampled_here and (ways or support.sampling != "shared"):
        ways = [f"sampling is {support.sampling}", f"training is {support.training}"]
    return [f"{seed.name}: {', '.join(ways)} ({'; '.join(support.reasons)})"] if ways else []


def check_markers(tokenizer: Any, formats: Sequence[ThoughtFormat]) -> None:
    """Raise UsageError where a marker does not survive the tokenizer: no output could ever be split by it."""
    for fmt in formats:
        for marker in fmt.markers:
            tokens = tokenizer(marker, add_special_tokens=False).input_ids
            if marker not in tokenizer.decode(tokens, skip_special_tokens=True):
                raise UsageError(
                    f"thought format {fmt.name!r}: the marker {marker!r} is lost in the model's tokenizer (it is, or holds, a "
                    "special token); choose another marker"
                )
