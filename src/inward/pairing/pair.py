"""Scores to pairs: length control, then best against worst (METHOD.md steps 4 and 5; paper section 2.3).

Per prompt, over its K scored outputs:  s = N(score) - rho * N(response length in characters),  N(v) = (v - mean) / std.
chosen = argmax s, rejected = argmin s, never swapped back by the raw score: where length control chose the output that
the judge liked less, the pair stands and is counted as *inverted*.

Where the paper leaves things open, or we deviate:
- Scores that are all equal give no pair, whatever the lengths: such a pair would teach brevity and nothing else.
- `min_gap` is a gap of the judge's own scores. (The gap of s is near constant: for two outputs it is always 2.)
- Ties of s (to nine decimals) go to the judge's score, then to a hash of seed and id: never to the order of outputs.
- An output that broke the format may be the rejected one in at most a share `format_errors` of all pairs. First come the
  prompts that gave no scored pair but have a scored output to choose: these pairs cost nothing. What is left of the share
  replaces the rejected output in scored pairs. Both are drawn by a hash of seed and id.
- An output that the judge could not score enters no pair.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from inward.config import PairingSettings
from inward.records import Output, Pair, PairKind, Score, content_id

TIE_DECIMALS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """The pairs, by prompt id, and how many prompts gave none, by reason. `inverted` counts chosen with a lower score."""

    pairs: list[Pair]
    skipped: dict[str, int]
    inverted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """One scored output with its length-controlled score s; `rank` is the seeded hash that settles ties."""

    output: Output
    score: float
    controlled: float
    rank: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """What one prompt has to offer. `worst` is None, and `reason` says why, where there is no scored pair."""

    prompt_id: str
    best: _Scored | None
    worst: _Scored | None
    malformed: Output | None
    reason: str


def pair_outputs(outputs: Sequence[Output], scores: Sequence[Score], settings: PairingSettings, *, seed: int) -> Pairing:
    """Return at most one pair a prompt. Every prompt gives a pair or is counted under the reason why not.

    The result does not depend on the order of outputs or scores. Each output needs exactly one score record.
    """
    score_of = {score.output_id: score.value for score in scores}
    assert len(score_of) == len(scores), "an output has two scores"
    by_prompt: dict[str, list[Output]] = defaultdict(list)
    for output in outputs:
        by_prompt[output.prompt_id].append(output)
    found = [_candidates(by_prompt[prompt_id], score_of, settings, seed) for prompt_id in sorted(by_prompt)]
    malformed = _malformed_rejects(found, Fraction(str(settings.format_errors)), seed)
    pairs = [pair for c in found if (pair := _pair(c, c.prompt_id in malformed)) is not None]
    paired = {pair.prompt_id for pair in pairs}
    return Pairing(
        pairs=pairs,
        skipped=dict(sorted(Counter(c.reason for c in found if c.prompt_id not in paired).items())),
        inverted=sum(pair.rejected_score is not None and pair.chosen_score < pair.rejected_score for pair in pairs),
    )


def describe(pairing: Pairing, outputs: Sequence[Output]) -> dict[str, Any]:
    """Return what there is to know of a pairing as plain values. `outputs` must hold every output of the pairs.

    Lengths are means in characters of the responses of *scored* pairs, None where there are none. The paper's rule for
    rho: raise it until `chosen_length` does not exceed `rejected_length`.
    """
    length_of = {output.id: len(output.response) for output in outputs if output.response is not None}
    scored = [pair for pair in pairing.pairs if pair.kind == "scored"]
    return {
        "pairs": len(pairing.pairs),
        "format_error_pairs": len(pairing.pairs) - len(scored),
        "inverted": pairing.inverted,
        "skipped": pairing.skipped,
        "chosen_length": statistics.fmean(length_of[pair.chosen_id] for pair in scored) if scored else None,
        "rejected_length": statistics.fmean(length_of[pair.rejected_id] for pair in scored) if scored else None,
    }


def normalise(values: Sequence[float]) -> list[float]:
    """Return (v - mean) / std with the population's standard deviation; zeros where all values are equal."""
    low, high = min(values), max(values)
    if low == high:
        return [0.0] * len(values)
    units = [(value - low) / (high - low) for value in values]  # so that no spread, however small, is lost to rounding
    mean, std = statistics.fmean(units), statistics.pstdev(units)
    return [(unit - mean) / std for unit in units]


def _candidates(
    outputs: Sequence[Output], score_of: Mapping[str, float | None], settings: PairingSettings, seed: int
) -> _Candidates:
    ranks = {output.id: content_id(str(seed), "output", output.id) for output in outputs}
    assert len(ranks) == len(outputs), "two outputs have the same id"
    broken = [output for output in outputs if output.response is None]
    assert all(score_of[output.id] is None for output in broken), "an output without a response has a score"
    scored = _length_controlled(outputs, score_of, settings.rho, ranks)
    best = max(scored, key=lambda s: (s.controlled, s.score, s.rank), default=None)
    worst = min(scored, key=lambda s: (s.controlled, s.score, s.rank), default=None)
    reason = _no_scored_pair(best, worst, scored, settings.min_gap)
    if not scored:
        reason = "all outputs malformed" if len(broken) == len(outputs) else "no output scored"
    return _Candidates(
        prompt_id=outputs[0].prompt_id,
        best=best,
        worst=None if reason else worst,
        malformed=min(broken, key=lambda output: ranks[output.id], default=None),
        reason=reason,
    )


def _length_controlled(
    outputs: Sequence[Output], score_of: Mapping[str, float | None], rho: float, ranks: Mapping[str, str]
) -> list[_Scored]:
    kept = [(output, score, len(output.response or "")) for output in outputs if (score := score_of[output.id]) is not None]
    if not kept:
        return []
    controlled = [
        round(score - rho * length, TIE_DECIMALS)
        for score, length in zip(normalise([k[1] for k in kept]), normalise([k[2] for k in kept]), strict=True)
    ]
    return [
        _Scored(output=output, score=score, controlled=s, rank=ranks[output.id])
        for (output, score, _), s in zip(kept, controlled, strict=True)
    ]


def _no_scored_pair(best: _Scored | None, worst: _Scored | None, scored: Sequence[_Scored], min_gap: float) -> str:
    """Return why best and worst make no pair, or nothing where they do."""
    if best is None or worst is None or len(scored) < 2:
        return "fewer than two scored"
    if len({s.score for s in scored}) == 1:
        return "all scores equal"
    if min_gap > 0 and best.score - worst.score < min_gap:
        return "gap below min_gap"
    return "identical texts" if best.output.text == worst.output.text else ""


def _malformed_rejects(found: Sequence[_Candidates], share: Fraction, seed: int) -> set[str]:
    """Return the prompts whose rejected output shall be a malformed one: at most `share` of all the pairs there will be."""
    usable = sorted(
        (c for c in found if c.best is not None and c.malformed is not None),
        key=lambda c: content_id(str(seed), "prompt", c.prompt_id),
    )
    extra = [c.prompt_id for c in usable if c.worst is None]
    replacing = [c.prompt_id for c in usable if c.worst is not None]
    scored = sum(c.worst is not None for c in found)
    if share < 1:
        extra = extra[: int(share * scored / (1 - share))]  # largest e with e <= share * (scored + e)
    left = int(share * (scored + len(extra))) - len(extra)
    return {*extra, *replacing[:left]}


def _pair(candidates: _Candidates, reject_malformed: bool) -> Pair | None:
    best, worst, malformed = candidates.best, candidates.worst, candidates.malformed
    if best is None or not (worst or reject_malformed):
        return None
    if reject_malformed:
        assert malformed is not None
        return _record(best, malformed, "format_error", None, None)
    assert worst is not None
    return _record(best, worst.output, "scored", worst.score, best.controlled - worst.controlled)


def _record(best: _Scored, rejected: Output, kind: PairKind, score: float | None, margin: float | None) -> Pair:
    return Pair(
        id=content_id("pair", best.output.id, rejected.id),
        prompt_id=rejected.prompt_id,
        kind=kind,
        chosen_id=best.output.id,
        rejected_id=rejected.id,
        chosen_score=best.score,
        rejected_score=score,
        margin=margin,
    )
