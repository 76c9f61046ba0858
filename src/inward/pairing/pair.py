"""Scores to pairs: length control, then best against worst (METHOD.md steps 4 and 5; paper section 2.3).

Per prompt, over its K scored outputs, lengths in characters or tokens and N(v) = (v - mean) / std:

    s = N(score) - rho * N(length of the response) - thought_weight * N(length of the thought)

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
- `rho = "auto"` is the paper's rule, on a grid: the smallest rho with which the chosen responses of scored pairs are on
  average no longer than the rejected ones; where none is large enough, the largest that still gives a scored pair.
- The paper does not control the length of thoughts: `thought_weight` is ours, 0 unless set.
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
from inward.sampling.lengths import Length
from inward.statistics import normalise

TIE_DECIMALS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """The pairs, by prompt id, and how many prompts gave none, by reason. `inverted` counts chosen with a lower score.

    `rho` is the length control that made them, and `rho_auto` says whether it was chosen by the paper's rule.
    """

    pairs: list[Pair]
    skipped: dict[str, int]
    inverted: int
    rho: float
    rho_auto: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """One scored output with its length-controlled score s; `rank` is the seeded hash that settles ties."""

    output: Output
    score: float
    controlled: float
    rank: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """One scored output, and N of its score, of its response's length and of its thought's."""

    output: Output
    score: float
    n_score: float
    n_response: float
    n_thought: float
    rank: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """The outputs of one prompt, measured once for any rho. `malformed` is the broken one to reject, if one shall be."""

    prompt_id: str
    outputs: int
    scored: tuple[_Measured, ...]
    broken: int
    malformed: Output | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """What one prompt has to offer. `worst` is None, and `reason` says why, where there is no scored pair."""

    prompt_id: str
    best: _Scored | None
    worst: _Scored | None
    malformed: Output | None
    reason: str


def pair_outputs(
    outputs: Sequence[Output],
    scores: Sequence[Score],
    settings: PairingSettings,
    *,
    seed: int,
    lengths: Mapping[str, Length] | None = None,
) -> Pairing:
    """Return at most one pair a prompt. Every prompt gives a pair or is counted under the reason why not.

    The result does not depend on the order of outputs or scores. Each output needs exactly one score record. `lengths` are by
    output id and in tokens (`sampling.lengths`); characters count where none are given.
    """
    assert (lengths is None) == (settings.length == "characters"), "lengths come in the unit of the settings"
    lengths = _characters(outputs) if lengths is None else lengths
    score_of = {score.output_id: score.value for score in scores}
    assert len(score_of) == len(scores), "an output has two scores"
    by_prompt: dict[str, list[Output]] = defaultdict(list)
    for output in outputs:
        by_prompt[output.prompt_id].append(output)
    groups = [_measure(by_prompt[prompt_id], score_of, lengths, seed) for prompt_id in sorted(by_prompt)]
    if settings.rho != "auto":
        return _pair_groups(groups, settings, settings.rho, seed)
    last = None
    for rho in rho_grid(settings.rho_max):
        pairing = _pair_groups(groups, settings, rho, seed)
        excess = [lengths[p.chosen_id].response - lengths[p.rejected_id].response for p in pairing.pairs if p.kind == "scored"]
        last = pairing if excess or last is None else last
        if excess and sum(excess) <= 0:
            return pairing
    assert last is not None
    return last


def rho_grid(rho_max: float) -> list[float]:
    """Return 0, 0.01, 0.02, ... and `rho_max`: what "auto" tries, in this order."""
    hundredths = [n / 100 for n in range(100) if n / 100 < rho_max]
    return [*hundredths, rho_max]


def _pair_groups(groups: Sequence[_Group], settings: PairingSettings, rho: float, seed: int) -> Pairing:
    found = [_candidates(group, settings, rho) for group in groups]
    malformed = _malformed_rejects(found, Fraction(str(settings.format_errors)), seed)
    pairs = [pair for c in found if (pair := _pair(c, c.prompt_id in malformed)) is not None]
    paired = {pair.prompt_id for pair in pairs}
    return Pairing(
        pairs=pairs,
        skipped=dict(sorted(Counter(c.reason for c in found if c.prompt_id not in paired).items())),
        inverted=sum(pair.rejected_score is not None and pair.chosen_score < pair.rejected_score for pair in pairs),
        rho=rho,
        rho_auto=settings.rho == "auto",
    )


def describe(pairing: Pairing, outputs: Sequence[Output], *, lengths: Mapping[str, Length] | None = None) -> dict[str, Any]:
    """Return what there is to know of a pairing as plain values. `outputs` must hold every output of the pairs.

    Lengths are means, in the unit of `pair_outputs`, of the responses of *scored* pairs, None where there are none.
    `length_rule` says whether the paper's rule holds: `chosen_length` does not exceed `rejected_length`. With rho "auto" it is
    false only where no rho of the range is large enough.
    """
    unit = "characters" if lengths is None else "tokens"
    lengths = _characters(outputs) if lengths is None else lengths
    scored = [pair for pair in pairing.pairs if pair.kind == "scored"]
    chosen = statistics.fmean(lengths[pair.chosen_id].response for pair in scored) if scored else None
    rejected = statistics.fmean(lengths[pair.rejected_id].response for pair in scored) if scored else None
    return {
        "pairs": len(pairing.pairs),
        "format_error_pairs": len(pairing.pairs) - len(scored),
        "inverted": pairing.inverted,
        "skipped": pairing.skipped,
        "chosen_length": chosen,
        "rejected_length": rejected,
        "length_unit": unit,
        "rho": pairing.rho,
        "rho_auto": pairing.rho_auto,
        "length_rule": None if chosen is None or rejected is None else chosen <= rejected,
    }


def _characters(outputs: Sequence[Output]) -> dict[str, Length]:
    return {o.id: Length(response=len(o.response or ""), thought=len(o.thought or "")) for o in outputs}


def _measure(
    outputs: Sequence[Output], score_of: Mapping[str, float | None], lengths: Mapping[str, Length], seed: int
) -> _Group:
    ranks = {output.id: content_id(str(seed), "output", output.id) for output in outputs}
    assert len(ranks) == len(outputs), "two outputs have the same id"
    broken = [output for output in outputs if output.response is None]
    assert all(score_of[output.id] is None for output in broken), "an output without a response has a score"
    kept = [(output, score) for output in outputs if (score := score_of[output.id]) is not None]
    scored: tuple[_Measured, ...] = ()
    if kept:
        n_scores = normalise([score for _, score in kept])
        n_responses = normalise([lengths[output.id].response for output, _ in kept])
        n_thoughts = normalise([lengths[output.id].thought for output, _ in kept])
        scored = tuple(
            _Measured(output=o, score=score, n_score=s, n_response=r, n_thought=t, rank=ranks[o.id])
            for (o, score), s, r, t in zip(kept, n_scores, n_responses, n_thoughts, strict=True)
        )
    return _Group(
        prompt_id=outputs[0].prompt_id,
        outputs=len(outputs),
        scored=scored,
        broken=len(broken),
        malformed=min(broken, key=lambda output: ranks[output.id], default=None),
    )


def _candidates(group: _Group, settings: PairingSettings, rho: float) -> _Candidates:
    scored = [_controlled(item, rho, settings.thought_weight) for item in group.scored]
    best = max(scored, key=lambda s: (s.controlled, s.score, s.rank), default=None)
    worst = min(scored, key=lambda s: (s.controlled, s.score, s.rank), default=None)
    reason = _no_scored_pair(best, worst, scored, settings.min_gap)
    if not scored:
        reason = "all outputs malformed" if group.broken == group.outputs else "no output scored"
    return _Candidates(
        prompt_id=group.prompt_id, best=best, worst=None if reason else worst, malformed=group.malformed, reason=reason
    )


def _controlled(item: _Measured, rho: float, thought_weight: float) -> _Scored:
    controlled = item.n_score - rho * item.n_response - thought_weight * item.n_thought
    return _Scored(output=item.output, score=item.score, controlled=round(controlled, TIE_DECIMALS), rank=item.rank)


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
