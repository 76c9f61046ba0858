"""How often a model's responses win against stored answers to the same prompts: what a pairwise judge compares models by.

Battles rank the responses to one prompt and put no two models on one scale. Against the same answers for all models they do: a
model's score is then its win rate. Every battle is asked in both orders, so that a judge's taste for a position cancels; a tie
and a pair of verdicts that contradict each other count one half, and so, without being asked, does an answer that is the same
text. From this follow, whatever the judge, two laws that the tests hold: a model has exactly 0.5 against its own answers, and
the win rates of two models against each other add up to 1.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from inward.judging.judge import Group, Judge, Ruling
from inward.judging.stage import FORMAT_ERROR
from inward.records import Output, Prompt, Score, Verdict, content_id

Baseline = Mapping[str, tuple[str, ...]]
"""The stored answers to each prompt, by its id, in their order. A prompt without any is left out of a measurement."""


def answers_of(outputs: Sequence[Output]) -> dict[str, tuple[str, ...]]:
    """Return the responses of a model's outputs as a baseline, in the order of their indices, without broken formats."""
    answers: dict[str, tuple[str, ...]] = {}
    for output in sorted(outputs, key=lambda output: (output.prompt_id, output.index, output.id)):
        if output.response is not None:
            answers[output.prompt_id] = (*answers.get(output.prompt_id, ()), output.response)
    return answers


def battles_against(prompts: Sequence[Prompt], outputs: Sequence[Output], baseline: Baseline, judge: Judge) -> list[Verdict]:
    """Return two verdicts for each response against each different answer that it meets, one an order.

    A verdict names the smallest id among the outputs with the response, and the n-th answer `<prompt id>.baseline.<n>`. `judge`
    must be a pairwise one that asks both orders (`inward.judging.make.in_both_orders`).
    """
    prompt_of = {prompt.id: prompt for prompt in prompts}
    matches = [match for group in _by_prompt(outputs) for match in _matches(group, baseline.get(group[0].prompt_id, ()))]
    asked = list(dict.fromkeys(match.texts for match in matches if match.response != match.answer))
    groups = [Group(prompt=prompt_of[prompt_id], responses=(first, second)) for prompt_id, first, second in asked]
    ruled = dict(zip(asked, map(_by_order, judge.judge(groups)), strict=True))
    verdicts: dict[str, Verdict] = {}
    for match in matches:
        if match.response != match.answer:
            in_order, swapped = ruled[match.texts]
            ahead, behind = (in_order, swapped) if match.response < match.answer else (swapped, in_order)
            for verdict in (
                _verdict(match.prompt_id, match.response_id, match.answer_id, ahead, judge.name),
                _verdict(match.prompt_id, match.answer_id, match.response_id, behind, judge.name),
            ):
                verdicts[verdict.id] = verdict
    return list(verdicts.values())


def win_rates(outputs: Sequence[Output], baseline: Baseline, verdicts: Sequence[Verdict]) -> list[Score]:
    """Return one score for every output, in the order of the outputs: the mean over the answers that it meets, from 0 to 1.

    Without a response there is none, and none without an answer to meet or without a battle that was decided in both orders.
    """
    verdict_of = {(verdict.first, verdict.second): verdict for verdict in verdicts}
    scores: dict[str, Score] = {}
    for group in _by_prompt(outputs):
        matches: dict[str, list[Match]] = defaultdict(list)
        for match in _matches(group, baseline.get(group[0].prompt_id, ())):
            matches[match.output_id].append(match)
        for output in group:
            scores[output.id] = _score(output, matches[output.id], verdict_of)
    return [scores[output.id] for output in outputs]


def contradictions(verdicts: Sequence[Verdict]) -> float | None:
    """Return the share of the battles decided in both orders in which both verdicts named the same position; None of none."""
    value_of = {(verdict.first, verdict.second): verdict.value for verdict in verdicts}
    decided = [
        value == other
        for (first, second), value in value_of.items()
        if value is not None and (other := value_of.get((second or "", first))) is not None and value != 0
    ]
    return fmean(decided) if decided else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An output that meets an answer. `response_id` and `answer_id` are the ids by which verdicts name the two texts."""

    prompt_id: str
    output_id: str
    response: str
    response_id: str
    answer: str
    answer_id: str

    @property
    def texts(self) -> tuple[str, str, str]:
        """The prompt and both texts in sorted order: what the judge is asked, whichever of the texts is the output's."""
        return (self.prompt_id, min(self.response, self.answer), max(self.response, self.answer))


def _matches(group: Sequence[Output], answers: Sequence[str]) -> list[Match]:
    """Return which output of a prompt meets which answer, without outputs that have no response.

    With n outputs and m answers there are lcm(n, m) matches, the r-th between output r mod n and answer r mod m: every output
    meets equally many, and so does every answer, which is what makes the win rates of two models add up to 1.
    """
    if not answers:
        return []
    response_id = {output.response: output.id for output in sorted(group, key=lambda output: output.id, reverse=True)}
    number = {answer: n for n, answer in reversed(list(enumerate(answers)))}
    met = ((group[r % len(group)], answers[r % len(answers)]) for r in range(math.lcm(len(group), len(answers))))
    return [
        Match(
            prompt_id=output.prompt_id,
            output_id=output.id,
            response=output.response,
            response_id=response_id[output.response],
            answer=answer,
            answer_id=f"{output.prompt_id}.baseline.{number[answer]}",
        )
        for output, answer in met
        if output.response is not None
    ]


def _by_prompt(outputs: Sequence[Output]) -> list[list[Output]]:
    of_prompt: dict[str, list[Output]] = defaultdict(list)
    for output in sorted(outputs, key=lambda output: (output.prompt_id, output.index, output.id)):
        of_prompt[output.prompt_id].append(output)
    return list(of_prompt.values())


def _by_order(rulings: Sequence[Ruling]) -> tuple[Ruling, Ruling]:
    ruling_of = {(ruling.first, ruling.second): ruling for ruling in rulings}
    assert ruling_of.keys() == {(0, 1), (1, 0)}, "a measurement against a baseline asks each battle in both orders"
    return ruling_of[0, 1], ruling_of[1, 0]


def _verdict(prompt_id: str, first: str, second: str, ruling: Ruling, name: str) -> Verdict:
    return Verdict(
        id=content_id("verdict", name, prompt_id, first, second),
        prompt_id=prompt_id,
        judge=name,
        first=first,
        second=second,
        value=ruling.value,
        unscored=ruling.unscored,
        detail=ruling.detail,
    )


def _score(output: Output, matches: Sequence[Match], verdict_of: Mapping[tuple[str, str | None], Verdict]) -> Score:
    if output.response is None:
        return _unscored(output, f"{FORMAT_ERROR}{output.format_error}")
    if not matches:
        return _unscored(output, "the baseline has no answer to this prompt")
    values: list[float] = []
    reasons: Counter[str] = Counter()
    for match in matches:
        if match.response == match.answer:
            values.append(0.5)
            continue
        ahead = verdict_of[match.response_id, match.answer_id]
        behind = verdict_of[match.answer_id, match.response_id]
        if ahead.value is None or behind.value is None:
            reasons[ahead.unscored or behind.unscored or ""] += 1
        else:
            values.append(0.5 + (ahead.value - behind.value) / 4)
    if not values:
        (reason, times), *_ = reasons.most_common(1)
        return _unscored(output, f"none of its {len(matches)} battles was decided in both orders, {times} for: {reason}")
    return Score(output_id=output.id, prompt_id=output.prompt_id, value=fmean(values), unscored=None)


def _unscored(output: Output, reason: str) -> Score:
    return Score(output_id=output.id, prompt_id=output.prompt_id, value=None, unscored=reason)
