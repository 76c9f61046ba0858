"""Figures of a judge from the stored verdicts and scores of one stage; the order of the records does not matter.

Definitions, with MT-Bench (Zheng et al. 2023, arXiv 2306.05685, section 3.4) for position consistency:

- `errors`: verdicts without a value among those asked for, with their reasons.
- `format_errors`: outputs without a response. `unscored`: responses without a score because the judge failed. `alone`:
  responses that a pairwise judge had no other to compare with. The three are kept apart: only the second is the judge's.
- `consistency`: among pairs decided in both orders, those with the same winner (or a tie) in both. An adaptive tournament asks
  close pairs more often, which makes this lower than it would be over all pairs.
- `first_position`: among battles with a winner, those won by the response that stood first. `ties`: among decided battles.
- `cyclic_groups`, `cyclic_triples`: of what the majorities over both orders say (`relations`).
- `spearman`, `pearson`: score with length in characters, within each prompt, averaged over prompts with a spread of both and
  at least `MIN_SAMPLES` scored responses. (Of two samples a correlation is always 1 or -1, whatever the judge.)
- `length_bias`: `spearman` without the prompts on which verifiable judges alone ruled, as a prompt may demand a length.
- `longer_wins`: among two responses to a prompt that differ in score and length, those where the longer scores higher.
- `no_spread`: prompts with two scored responses or more that all have the same score.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from inward.config import CombinedJudge, JudgeSettings, VerifiableJudge
from inward.judging.pairwise.judge import ALONE
from inward.judging.tournament.adaptive import TIE
from inward.records import Output, Score, Verdict
from inward.statistics import Floats, correlation, rank_correlation
from inward.trust.figures import Figure, mean, share
from inward.trust.relations import (
    Battles,
    Count,
    Results,
    consistent,
    cyclic,
    cyclic_triples,
    results_by_group,
    tied,
    won_by_first,
)

MIN_SAMPLES = 4
"""Scored responses to a prompt from which on a correlation with their length is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The figures of one stage. `reasons` counts why verdicts have no value, the most frequent first."""

    prompts: int
    outputs: int
    verdicts: int
    errors: Figure
    reasons: dict[str, int]
    format_errors: Figure
    unscored: Figure
    alone: Figure
    consistency: Figure
    first_position: Figure
    ties: Figure
    cyclic_groups: Figure
    cyclic_triples: Figure
    spearman: Figure
    length_bias: Figure
    pearson: Figure
    longer_wins: Figure
    no_spread: Figure


def audit(
    outputs: Sequence[Output], verdicts: Sequence[Verdict], scores: Sequence[Score], *, judge: JudgeSettings | None = None
) -> Audit:
    """Return the figures. Every output needs its score record; the order of the records does not matter.

    `judge` are the settings that made the verdicts; without them no judge is taken for a verifiable one.
    """
    score_of = {score.output_id: score for score in scores}
    responses = [output for output in outputs if output.response is not None]
    asked = [verdict for verdict in verdicts if not is_alone(verdict.unscored)]
    groups, battles = _groups(responses, score_of), results_by_group(asked)
    verified = _verified_prompts(verdicts, judge)
    return Audit(
        prompts=len({output.prompt_id for output in outputs}),
        outputs=len(outputs),
        verdicts=len(asked),
        errors=errors(asked),
        reasons=reasons(asked),
        format_errors=share((o.prompt_id, (o.response is None, 1)) for o in outputs),
        unscored=share((o.prompt_id, (_failed(score_of[o.id]), 1)) for o in responses),
        alone=share((o.prompt_id, (is_alone(score_of[o.id].unscored), 1)) for o in responses),
        consistency=over_battles(battles, consistent),
        first_position=over_battles(battles, won_by_first),
        ties=over_battles(battles, tied),
        cyclic_groups=over_battles(battles, cyclic),
        cyclic_triples=over_battles(battles, cyclic_triples),
        spearman=_mean_correlation(groups, rank_correlation),
        length_bias=_mean_correlation({p: group for p, group in groups.items() if p not in verified}, rank_correlation),
        pearson=_mean_correlation(groups, correlation),
        longer_wins=share((prompt, longer_wins(*group)) for prompt, group in groups.items()),
        no_spread=share((prompt, (float(np.ptp(s) <= TIE), 1)) for prompt, (s, _) in groups.items() if len(s) > 1),
    )


def is_alone(unscored: str | None) -> bool:
    return unscored == ALONE


def errors(verdicts: Iterable[Verdict], cluster: Callable[[str], str] = str) -> Figure:
    """Return the share of verdicts without a value. `cluster` maps a verdict's prompt to what is resampled."""
    return share((cluster(verdict.prompt_id), (verdict.value is None, 1)) for verdict in verdicts)


def reasons(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Count why there is no value. What differs from case to case (a cut text's end, how many tokens) is left out."""
    counts = Counter(
        re.sub(r"\d+(?= tokens)", "N", verdict.unscored.partition(": ")[0]) for verdict in verdicts if verdict.unscored
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def over_battles(battles: Battles, count: Callable[[Results], Count], cluster: Callable[[str], str] = str) -> Figure:
    """Return the share that `count` finds in the battles of each prompt and judge."""
    return share((cluster(prompt), count(results)) for (prompt, _), results in battles.items())


def longer_wins(scores_K: Floats, lengths_K: Floats) -> Count:
    """Return how many of the pairs that differ in score and length the longer one won."""
    apart_KK = np.subtract.outer(scores_K, scores_K)
    higher_KK, longer_KK = apart_KK > TIE, np.greater.outer(lengths_K, lengths_K)
    return float((higher_KK & longer_KK).sum()), float((higher_KK & (longer_KK | longer_KK.T)).sum())


def _verified_prompts(verdicts: Sequence[Verdict], judge: JudgeSettings | None) -> set[str]:
    """Return the ids of the prompts on which verifiable judges alone ruled.

    The verdicts of a cascade and of routes name the part that ruled on a prompt.
    """
    if not isinstance(judge, CombinedJudge):
        return {verdict.prompt_id for verdict in verdicts} if isinstance(judge, VerifiableJudge) else set()
    verifiable = {key for key, part in judge.parts.items() if isinstance(part, VerifiableJudge)}
    if len(verifiable) == len(judge.parts):
        return {verdict.prompt_id for verdict in verdicts}
    ruled_by = {verdict.prompt_id: json.loads(verdict.detail).get("ruled_by", {}).get("part") for verdict in verdicts}
    return {prompt_id for prompt_id, part in ruled_by.items() if part in verifiable}


def _failed(score: Score) -> bool:
    return score.value is None and not is_alone(score.unscored)


def _groups(responses: Sequence[Output], score_of: dict[str, Score]) -> dict[str, tuple[Floats, Floats]]:
    """Return each prompt's scores and lengths, of its scored responses."""
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for output in sorted(responses, key=lambda output: output.id):
        value = score_of[output.id].value
        if value is not None and output.response is not None:
            groups[output.prompt_id].append((value, float(len(output.response))))
    return {prompt: (np.array(rows)[:, 0], np.array(rows)[:, 1]) for prompt, rows in groups.items()}


def _mean_correlation(groups: dict[str, tuple[Floats, Floats]], correlate: Callable[[Floats, Floats], float]) -> Figure:
    return mean(
        {
            prompt: correlate(scores_K, lengths_K)
            for prompt, (scores_K, lengths_K) in groups.items()
            if len(scores_K) >= MIN_SAMPLES and np.ptp(scores_K) > TIE and np.ptp(lengths_K) > 0
        }
    )
