"""The judging stage: outputs to verdicts, verdicts to scores (METHOD.md step 3, both kinds of judge).

Only responses reach the judge, each different text of a prompt once. A pointwise verdict is repeated for every copy of a text;
a battle names one output for each of its two texts, that of the smallest id, and serves all copies. What has no score says why:
a format error, the judge's own reason, or a value that is not a finite number.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from statistics import fmean
from typing import TYPE_CHECKING

from inward.errors import JudgeError
from inward.judging.judge import Group, Judge, Ruling
from inward.records import Output, Prompt, Score, Verdict, content_id
from inward.thought import CUT_OFF_RESPONSE

if TYPE_CHECKING:
    from inward.judging.tournament.scores import Judged

FORMAT_ERROR = "format error: "


def judge_outputs(
    prompts: Sequence[Prompt], outputs: Sequence[Output], judge: Judge, *, lengths: Mapping[str, float] | None = None
) -> list[Verdict]:
    """Return the verdicts, prompt by prompt: one an output with a response from a pointwise judge, else one a battle.

    The judge meets prompts in the order given and the different responses of a prompt in sorted order, so that no verdict
    can depend on the order of the outputs. Verdicts on a prompt come in the order of its outputs, battles as the judge gave
    them. A response that a pairwise judge had nothing to compare with has one verdict that says so. `lengths` are those of
    the responses by output id (characters unless given): a judge may go by them, and that of a text is the mean of its copies.
    """
    prompt_of = {prompt.id: prompt for prompt in prompts}
    assert len(prompt_of) == len(prompts), "two prompts have the same id"
    copies: dict[str, dict[str, list[Output]]] = {}
    for output in outputs:
        assert output.prompt_id in prompt_of, f"output {output.id} is of no prompt in this stage"
        if output.response is not None:
            copies.setdefault(output.prompt_id, {}).setdefault(output.response, []).append(output)
    groups = [_group(prompt, copies[prompt.id], lengths) for prompt in prompts if prompt.id in copies]
    rulings = judge.judge(groups)
    assert len(rulings) == len(groups), f"judge {judge.name} answered {len(rulings)} of {len(groups)} groups"
    pointwise: dict[str, Verdict] = {}
    battles: list[Verdict] = []
    for group, own in zip(groups, rulings, strict=True):
        outputs_of = [copies[group.prompt.id][text] for text in group.responses]
        _check_rulings(group, own, judge.name)
        if any(ruling.second is not None for ruling in own):
            battles += [_battle(ruling, outputs_of, judge.name) for ruling in own]
        else:
            pointwise |= {o.id: _verdict(o, ruling, judge.name) for ruling in own for o in outputs_of[ruling.first]}
    return [pointwise[output.id] for output in outputs if output.id in pointwise] + battles


def rulers(verdicts: Sequence[Verdict]) -> dict[str, dict[str, int]]:
    """Return on how many prompts each part of a cascade or of routes ruled, and on how many a panel disagreed."""
    from inward.judging.combined.panel import DISAGREES

    prompts_of: dict[str, set[str]] = defaultdict(set)
    disagreed: set[str] = set()
    for verdict in verdicts:
        if ruled_by := json.loads(verdict.detail).get("ruled_by"):
            prompts_of[ruled_by["part"]].add(verdict.prompt_id)
        if verdict.unscored == DISAGREES:
            disagreed.add(verdict.prompt_id)
    counts = {part: len(prompts) for part, prompts in sorted(prompts_of.items())}
    return {"prompts_by_judge": counts} if counts else {"panel": {"prompts_disagreed_on": len(disagreed)}}


def score_outputs(outputs: Sequence[Output], verdicts: Sequence[Verdict], *, prior: float | None = None) -> list[Score]:
    """Return one score for every output, in the order of the outputs: its verdict's value, or its strength in battle.

    `prior` is that of the strengths, which only battles need.
    """
    from inward.judging.tournament.scores import score_battles

    verdicts_of: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        verdicts_of[verdict.prompt_id].append(verdict)
    fought = sorted(prompt for prompt, own in verdicts_of.items() if any(verdict.second is not None for verdict in own))
    judged_of: dict[str, Judged] = {}
    for judged in score_battles([verdicts_of.pop(prompt) for prompt in fought], prior):
        judged_of |= judged
    single = [verdict for own in verdicts_of.values() for verdict in own]
    judged_of |= {verdict.first: _finite(verdict.value, verdict.unscored) for verdict in single}
    assert len({verdict.first for verdict in single}) == len(single), "an output has two verdicts"
    stand_ins = _stand_ins(outputs, set(fought))
    return [_score(output, judged_of.get(stand_ins.get(output.id, output.id))) for output in outputs]


def require_some_scores(scores: Sequence[Score]) -> None:
    """Raise `JudgeError` where a whole stage was left without a single score, with the most frequent reasons."""
    reasons = Counter(score.unscored for score in scores if score.unscored is not None)
    if len(scores) > reasons.total() or not scores:
        return
    malformed = sum(count for reason, count in reasons.items() if reason.startswith(FORMAT_ERROR))
    lines = [f"  {count} x {reason}" for reason, count in reasons.most_common(5)]
    if malformed < len(scores):
        advice = (
            "Check the judge's settings against the prompts (a verifiable judge needs prompts with answers or constraints)."
        )
    elif reasons.most_common(1)[0][0] == FORMAT_ERROR + CUT_OFF_RESPONSE:
        advice = (
            "Most responses were cut off before their end, so there was nothing whole to judge. Raise "
            "sampling.max_new_tokens, or set sampling.cut_off_responses = 'allow' to have them judged as they are."
        )
    else:
        advice = (
            "No output kept to the thought format, so there was nothing to judge. Set thought.scaffold, which writes the "
            "markers for a model that does not, or raise sampling.max_new_tokens if outputs are cut off."
        )
    raise JudgeError("\n".join([f"none of {len(scores)} outputs was scored:", *lines, advice]))


def _group(prompt: Prompt, outputs_of: Mapping[str, Sequence[Output]], lengths: Mapping[str, float] | None) -> Group:
    texts = tuple(sorted(outputs_of))
    means = None if lengths is None else tuple(fmean(lengths[output.id] for output in outputs_of[text]) for text in texts)
    return Group(prompt=prompt, responses=texts, lengths=means, copies=tuple(len(outputs_of[text]) for text in texts))


def _stand_ins(outputs: Sequence[Output], fought: Set[str]) -> dict[str, str]:
    """Return for every output that fought the one whose id battles name in its stead: the smallest among its copies."""
    smallest: dict[tuple[str, str], str] = {}
    fighters = [(o.id, (o.prompt_id, o.response)) for o in outputs if o.response is not None and o.prompt_id in fought]
    for id_, text in fighters:
        smallest[text] = min(smallest.get(text, id_), id_)
    return {id_: smallest[text] for id_, text in fighters}


def _check_rulings(group: Group, rulings: Sequence[Ruling], name: str) -> None:
    """Hold a judge to its protocol: one ruling a response, or battles, each between two responses and none fought twice."""
    battles = [(ruling.first, ruling.second) for ruling in rulings if ruling.second is not None]
    if not battles:
        ruled = sorted(ruling.first for ruling in rulings)
        assert ruled == list(range(len(group.responses))), (
            f"judge {name} did not rule once on each response of {group.prompt.id}"
        )
        return
    assert len(battles) == len(rulings), f"judge {name} mixed battles and scores on {group.prompt.id}"
    assert len(set(battles)) == len(battles), f"judge {name} ruled twice on a battle of {group.prompt.id}"
    assert all(first != second for first, second in battles), f"judge {name} let a response fight itself"
    fighters = {index for battle in battles for index in battle}
    assert fighters == set(range(len(group.responses))), f"judge {name} left out a response"


def _battle(ruling: Ruling, outputs_of: Sequence[Sequence[Output]], name: str) -> Verdict:
    assert ruling.second is not None
    first, second = (min(outputs_of[index], key=lambda output: output.id) for index in (ruling.first, ruling.second))
    value, unscored = _finite(ruling.value, ruling.unscored)
    assert value in (None, 1.0, 0.0, -1.0), "a battle is won, lost or tied"
    return Verdict(
        id=content_id("verdict", name, first.prompt_id, first.id, second.id),
        prompt_id=first.prompt_id,
        judge=name,
        first=first.id,
        second=second.id,
        value=value,
        unscored=unscored,
        detail=ruling.detail,
    )


def _verdict(output: Output, ruling: Ruling, name: str) -> Verdict:
    value, unscored = _finite(ruling.value, ruling.unscored)
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


def _score(output: Output, judged: Judged | None) -> Score:
    if output.response is None:
        judged = None, f"{FORMAT_ERROR}{output.format_error}"
    assert judged is not None, f"output {output.id} has a response but no verdict"
    value, unscored = judged
    return Score(output_id=output.id, prompt_id=output.prompt_id, value=value, unscored=unscored)


def _finite(value: float | None, unscored: str | None) -> Judged:
    """Hold the promise that a value is missing exactly where a reason is given, and that it is a finite number."""
    assert (value is None) == (unscored is not None), "a judgement has either a value or a reason for having none"
    if value is not None and not math.isfinite(value):
        return None, f"the judge's value is not finite: {value}"
    return value, unscored
