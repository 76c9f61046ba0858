"""What a run will take at most, stage by stage: a function of its recipe and of what was measured of its prompts.

All counts are upper bounds, because how long outputs are, how many pairs there are and when a tournament knows its outcome
shows only when it happens. No seconds are made up: where the directory holds finished work of the same run, its own rates are
carried on (`projected`), and without any there are none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final, Literal

from inward.config import Arm, PairwiseJudge, Recipe
from inward.judging.most import Asked, Judged, most_asked, most_asked_against
from inward.records import Prompt
from inward.runs.ledger import Cost

Kind = Literal["outputs", "verdicts", "reference", "training", "validation", "judging of validation"]
BY_NAME: Final[dict[str, Kind]] = {
    "outputs": "outputs",
    "verdicts": "verdicts",
    "reference": "reference",
    "training": "training",
}
"""The stages that the ledger calls by the same name."""
Lengths = Mapping[Arm, Mapping[str, int]]
"""The tokens of each prompt text, as an arm asks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageForecast:
    """The most that a stage does: `count` of a `unit`, with the tokens that models read and write, and what is paid for them.

    `items` is the count in the unit of the ledger, by which `seconds` are projected; None where nothing was measured.
    """

    stage: Kind
    count: int
    unit: str
    items: int
    judge: str = ""
    read: int = 0
    written: int = 0
    money: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationForecast:
    """The stages of one iteration of one arm. `finished` says that they are stored already."""

    arm: Arm
    iteration: int
    finished: bool
    stages: tuple[StageForecast, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """The prompts of a run as they are dealt out, with their lengths; None of what could not be read.

    `baseline_answers` are how many answers a response meets at most where a pairwise judge compares models.
    """

    iterations: Sequence[Sequence[Prompt]] | None
    validation: Sequence[Prompt] | None
    lengths: Lengths
    baseline_answers: int

    def tokens(self, recipe: Recipe, arm: Arm, t: int | None) -> tuple[int, int]:
        """Return how many tokens the prompts of iteration t (None: validation) have in an arm, and the longest of them."""
        prompts, count = self._of(recipe, t)
        known = self.lengths.get(arm, {})
        if prompts is None or not known:
            return count * recipe.prompts.max_tokens, recipe.prompts.max_tokens
        lengths = [known[prompt.text] for prompt in prompts]
        return sum(lengths), max(lengths)

    def _of(self, recipe: Recipe, t: int | None) -> tuple[Sequence[Prompt] | None, int]:
        if t is None:
            return self.validation, recipe.prompts.validation
        return (None if self.iterations is None else self.iterations[t - 1]), recipe.prompts.per_iteration


def forecast(recipe: Recipe, dealt: Dealt, finished: Iterable[tuple[str, int]] = ()) -> list[IterationForecast]:
    """Return every iteration of every arm in the order of the loop, 0 being the measurement of the seed."""
    done = set(finished)
    return [
        IterationForecast(
            arm=arm,
            iteration=t,
            finished=(arm, t) in done,
            stages=tuple(_iteration(recipe, dealt, arm, t) if t else _validation(recipe, dealt, arm, models=1)),
        )
        for t in range(recipe.iterations + 1)
        for arm in recipe.arms
    ]


def _iteration(recipe: Recipe, dealt: Dealt, arm: Arm, t: int) -> list[StageForecast]:
    prompts, k, longest_output = recipe.prompts.per_iteration, recipe.sampling.k, recipe.sampling.max_new_tokens
    read, longest = dealt.tokens(recipe, arm, t)
    settings = recipe.training
    pair_tokens = read + 2 * prompts * longest_output  # one pair a prompt at most, its prompt read once for both outputs
    outputs = StageForecast(
        stage="outputs", count=prompts * k, unit="outputs", items=prompts, read=read, written=prompts * k * longest_output
    )
    judged = Judged(prompts=prompts, k=k, prompt_tokens=longest, response_tokens=longest_output)
    own = None if dealt.iterations is None else dealt.iterations[t - 1]
    stages = [outputs, *_asked("verdicts", most_asked(recipe.judge, judged, own), prompts * k)]
    if settings.needs_reference and settings.reference != "sampler":
        stages.append(StageForecast(stage="reference", count=prompts, unit="pairs", items=prompts, read=pair_tokens))
    steps = -(-prompts // settings.batch_pairs) * settings.epochs
    stages.append(StageForecast(stage="training", count=steps, unit="steps", items=prompts, read=pair_tokens * settings.epochs))
    return stages + (_validation(recipe, dealt, arm, models=settings.epochs) if recipe.validates(t) else [])


def _validation(recipe: Recipe, dealt: Dealt, arm: Arm, *, models: int) -> list[StageForecast]:
    """Return the drawing and judging by which so many models are compared; an output may be drawn `tries` times."""
    settings, prompts, judge = recipe.validation, recipe.prompts.validation, recipe.validation_judge
    read, longest = dealt.tokens(recipe, arm, None)
    outputs, draws = models * prompts * settings.samples, models * settings.tries
    drawn = StageForecast(
        stage="validation",
        count=outputs,
        unit="outputs",
        items=models * prompts,
        read=draws * read,
        written=draws * prompts * settings.samples * recipe.sampling.max_new_tokens,
    )
    judged = Judged(
        prompts=models * prompts,
        k=settings.samples,
        prompt_tokens=longest,
        response_tokens=recipe.sampling.max_new_tokens,
    )
    key = "judge" if settings.judge is None else "validation.judge"
    if isinstance(judge, PairwiseJudge):
        asked = most_asked_against(judge, judged, dealt.baseline_answers, key=key)
    else:
        repeated = None if dealt.validation is None else [*dealt.validation] * models
        asked = most_asked(judge, judged, repeated, key=key)
    return [drawn, *_asked("judging of validation", asked, outputs)]


def _asked(stage: Kind, asked: Iterable[Asked], items: int) -> list[StageForecast]:
    return [
        StageForecast(
            stage=stage,
            count=part.calls,
            unit=part.unit,
            items=items,
            judge=part.judge,
            read=part.read,
            written=part.written,
            money=part.money,
        )
        for part in asked
    ]


def projected(
    iterations: Sequence[IterationForecast], costs: Sequence[Cost], at_once: Mapping[Kind, int]
) -> list[IterationForecast]:
    """Return the iterations with the seconds that their stages would take at the rates of what is done, arm by arm.

    `at_once` says how many shards of a stage are in work at the same time. A stage is projected from its items (prompts,
    outputs, pairs) at their measured seconds, so that it is in it where outputs end early; and from as many pairs as there have
    been on average. Of several judges of a stage the first carries the seconds of all.
    """
    rates = _rates(costs)
    return [
        replace(one, stages=tuple(_with_seconds(one, number, rates, at_once) for number in range(len(one.stages))))
        for one in iterations
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """Seconds an item of each stage of an arm, and the mean number of pairs that an arm was trained on."""

    seconds: Mapping[tuple[str, Kind], float]
    pairs: Mapping[str, float]


def _rates(costs: Sequence[Cost]) -> _Rates:
    seconds: dict[tuple[str, Kind], float] = defaultdict(float)
    items, trained = Counter[tuple[str, Kind]](), defaultdict[str, list[int]](list)
    for cost in costs:
        if (kind := kind_of(cost.stage)) is not None:
            seconds[cost.arm, kind] += cost.seconds
            items[cost.arm, kind] += cost.items
        if cost.stage == "training":
            trained[cost.arm].append(cost.items)
    return _Rates(
        seconds={place: seconds[place] / count for place, count in items.items() if count},
        pairs={arm: fmean(counts) for arm, counts in trained.items()},
    )


def _with_seconds(one: IterationForecast, number: int, rates: _Rates, at_once: Mapping[Kind, int]) -> StageForecast:
    stage = one.stages[number]
    rate = rates.seconds.get((one.arm, stage.stage))
    if rate is None or stage.stage in {earlier.stage for earlier in one.stages[:number]}:
        return stage
    learned = stage.stage in ("reference", "training")
    items = rates.pairs.get(one.arm, stage.items) if learned else stage.items
    return replace(stage, seconds=rate * items / at_once.get(stage.stage, 1))


def kind_of(stage: str) -> Kind | None:
    """Return which of the forecast's stages a row of the ledger belongs to; None for what a run does not do by itself."""
    if stage.startswith("validation of "):
        return "validation"
    if stage.startswith("judging, validation of "):
        return "judging of validation"
    return BY_NAME.get(stage)
