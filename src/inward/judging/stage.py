"""The judging stage: outputs to verdicts, verdicts to scores (METHOD.md step 3, the pointwise kind of judge).

Only responses reach the judge, each different text of a prompt once. What has no score says why: a format error, the
judge's own reason, or a value that is not a finite number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from inward.errors import JudgeError
from inward.judging.judge import Group, Judge, Ruling
from inward.records import Output, Prompt, Score, Verdict, content_id

FORMAT_ERROR = "format error: "


def judge_outputs(prompts: Sequence[Prompt], outputs: Sequence[Output], judge: Judge) -> list[Verdict]:
    """Return one verdict for every output with a response, in the order of the outputs.

    The judge meets prompts in the order given and the different responses of a prompt in sorted order, so that no verdict
    can depend on the order of the outputs; equal responses share what was said of them.
    """
    prompt_of = {prompt.id: prompt for prompt in prompts}
    assert len(prompt_of) == len(prompts), "two prompts have the same id"
    texts: dict[str, set[str]] = {}
    for output in outputs:
        assert output.prompt_id in prompt_of, f"output {output.id} is of no prompt in this stage"
        if output.response is not None:
            texts.setdefault(output.prompt_id, set()).add(output.response)
    groups = [Group(prompt=p, responses=tuple(sorted(texts[p.id]))) for p in prompts if p.id in texts]
    rulings = judge.judge(groups)
    assert len(rulings) == len(groups), f"judge {judge.name} answered {len(rulings)} of {len(groups)} groups"
    said = {
        (group.prompt.id, text): ruling
        for group, ruled in zip(groups, rulings, strict=True)
        for text, ruling in _by_text(group, ruled, judge.name).items()
    }
    return [
        _verdict(output, said[output.prompt_id, output.response], judge.name)
        for output in outputs
        if output.response is not None
    ]


def score_outputs(outputs: Sequence[Output], verdicts: Sequence[Verdict]) -> list[Score]:
    """Return one score for every output, in the order of the outputs. Takes pointwise verdicts only."""
    verdict_of = {verdict.first: verdict for verdict in verdicts}
    assert len(verdict_of) == len(verdicts), "an output has two verdicts"
    assert all(verdict.second is None for verdict in verdicts), "battles do not score an output by themselves"
    return [_score(output, verdict_of.get(output.id)) for output in outputs]


def require_some_scores(scores: Sequence[Score]) -> None:
    """Raise `JudgeError` where a whole stage was left without a single score, with the most frequent reasons."""
    reasons = Counter(score.unscored for score in scores if score.unscored is not None)
    if len(scores) > reasons.total() or not scores:
        return
    malformed = sum(count for reason, count in reasons.items() if reason.startswith(FORMAT_ERROR))
    lines = [f"  {count} x {reason}" for reason, count in reasons.most_common(5)]
    advice = (
        "No output kept to the thought format, so there was nothing to judge. Set thought.scaffold, which writes the markers "
        "for a model that does not, or raise sampling.max_new_tokens if outputs are cut off."
        if malformed == len(scores)
        else "Check the judge's settings against the prompts (a verifiable judge needs prompts with answers or constraints)."
    )
    raise JudgeError("\n".join([f"none of {len(scores)} outputs was scored:", *lines, advice]))


def _by_text(group: Group, rulings: Sequence[Ruling], name: str) -> dict[str, Ruling]:
    assert all(ruling.second is None for ruling in rulings), f"judge {name} gave a battle to a pointwise stage"
    ruled = sorted(ruling.first for ruling in rulings)
    assert ruled == list(range(len(group.responses))), f"judge {name} did not rule once on each response of {group.prompt.id}"
    return {group.responses[ruling.first]: ruling for ruling in rulings}


def _verdict(output: Output, ruling: Ruling, name: str) -> Verdict:
    value, unscored = _settle(ruling.value, ruling.unscored)
    return Verdict(
        id=content_id("verdict", name, output.prompt_id, output.id),
        prompt_id=output.prompt_id,
        judge=name,
        first=output.id,
        second=None,
        value=value,
        unscored=unscored,
        detail=ruling.detail,
    )


def _score(output: Output, verdict: Verdict | None) -> Score:
    if output.response is None:
        return Score(
            output_id=output.id, prompt_id=output.prompt_id, value=None, unscored=f"{FORMAT_ERROR}{output.format_error}"
        )
    assert verdict is not None, f"output {output.id} has a response but no verdict"
    value, unscored = _settle(verdict.value, verdict.unscored)
    return Score(output_id=output.id, prompt_id=output.prompt_id, value=value, unscored=unscored)


def _settle(value: float | None, unscored: str | None) -> tuple[float | None, str | None]:
    """Hold the promise that a value is missing exactly where a reason is given, and that it is a finite number."""
    assert (value is None) == (unscored is not None), "a judgement has either a value or a reason for having none"
    if value is not None and not math.isfinite(value):
        return None, f"the judge's value is not finite: {value}"
    return value, unscored
