"""Scores to pairs: length control, then best against worst (METHOD.md steps 4 and 5; paper section 2.3).

Per prompt, over its K scored outputs, chosen = argmax s and rejected = argmin s, where s is the length-controlled score
(`judging.length_control`), lengths being in characters or tokens. A pair is never swapped back by the raw score: where length
control chose the output that the judge liked less, the pair stands and is counted as *inverted*.

Where the paper leaves things open, or we deviate:
- Scores that are all equal give no pair, whatever the lengths: such a pair would teach brevity and nothing else.
- `min_gap` is a gap of the judge's own scores. (The gap of s is near constant: for two outputs it is always 2.)
- Ties of s go to the judge's score, then to a hash of seed and id: never to the order of outputs.
- An output that broke the format, a response that was cut off included (`sampling.cut_off_responses`), may be the rejected one
  in at most a share `format_errors` of all pairs. First come the prompts that gave no scored pair but have a scored output to
  choose: these pairs cost nothing. What is left of the share replaces the rejected output in scored pairs. Both are drawn by a
  hash of seed and id.
- An output that the judge could not score enters no pair.
- `rho = "auto"` is the paper's rule, on a grid: the smallest rho with which the chosen responses of scored pairs are on
  average no longer than the rejected ones; where none is large enough, the largest that still gives a scored pair.
- Another output than the worst may be the rejected one (`rejected`).
- The paper does not control the length of thoughts: `thought_weight` is ours, 0 unless set.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from inward.config import PairingSettings
from inward.judging.length_control import length_controlled
from inward.pairing.rejected import Scored, choose_rejected
from inward.records import Output, Pair, PairKind, Score, content_id
from inward.sampling.lengths import Length
from inward.statistics import Counts, Floats


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
class _Group:
    """The outputs of one prompt: the scored ones with their scores, and the malformed one to reject, if one shall be.

    `ranks` are the seeded hashes that settle ties.
    """

    prompt_id: str
    scored: tuple[Output, ...]
    scores: tuple[float, ...]
    ranks: tuple[str, ...]
    all_malformed: bool
    malformed: Output | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """What length control goes by: G groups in rows, K columns, `copies_GK` being 1 where there is a scored output, else 0."""

    scores_GK: Floats
    responses_GK: Floats
    thoughts_GK: Floats
    copies_GK: Counts

    def controlled(self, rho: float, thought_weight: float) -> Floats:
        return length_controlled(
            self.scores_GK,
            self.responses_GK,
            self.copies_GK,
            rho,
            thoughts_GK=self.thoughts_GK,
            thought_weight=thought_weight,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """What one prompt has to offer. `rejected` is None, and `reason` says why, where there is no scored pair."""

    prompt_id: str
    best: Scored | None
    rejected: Scored | None
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
    groups = [_group(by_prompt[prompt_id], score_of, seed) for prompt_id in sorted(by_prompt)]
    table = _table(groups, lengths)
    if settings.rho != "auto":
        return _pair_groups(groups, table, settings, settings.rho, seed)
    last = None
    for rho in rho_grid(settings.rho_max):
        pairing = _pair_groups(groups, table, settings, rho, seed)
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


def _pair_groups(groups: Sequence[_Group], table: _Table, settings: PairingSettings, rho: float, seed: int) -> Pairing:
    s_GK = table.controlled(rho, settings.thought_weight)
    candidates = [_candidates(group, s_K, settings) for group, s_K in zip(groups, s_GK, strict=True)]
    malformed = _malformed_rejects(candidates, Fraction(str(settings.format_errors)), seed)
    pairs = [pair for c in candidates if (pair := _pair(c, c.prompt_id in malformed)) is not None]
    paired = {pair.prompt_id for pair in pairs}
    return Pairing(
        pairs=pairs,
        skipped=dict(sorted(Counter(c.reason for c in candidates if c.prompt_id not in paired).items())),
        inverted=sum(pair.rejected_score is not None and pair.chosen_score < pair.rejected_score for pair in pairs),
        rho=rho,
        rho_auto=settings.rho == "auto",
    )


def describe(pairing: Pairing, outputs: Sequence[Output], *, lengths: Mapping[str, Length] | None = None) -> dict[str, Any]:
    """Return what there is to know of a pairing as plain values. `outputs` are those that it was made from.

    `malformed` counts the outputs that broke the format by how, whether they entered a pair or not. Lengths are means, in the
    unit of `pair_outputs`, of the responses of *scored* pairs, None where there are none. `length_rule` says whether the
    paper's rule holds: `chosen_length` does not exceed `rejected_length`. With rho "auto" it is false only where no rho of the
    range is large enough.
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
        "malformed": dict(sorted(Counter(o.format_error for o in outputs if o.format_error is not None).items())),
        "chosen_length": chosen,
        "rejected_length": rejected,
        "length_unit": unit,
        "rho": pairing.rho,
        "rho_auto": pairing.rho_auto,
        "length_rule": None if chosen is None or rejected is None else chosen <= rejected,
    }


def _characters(outputs: Sequence[Output]) -> dict[str, Length]:
    return {o.id: Length(response=len(o.response or ""), thought=len(o.thought or "")) for o in outputs}


def _group(outputs: Sequence[Output], score_of: Mapping[str, float | None], seed: int) -> _Group:
    outputs = sorted(outputs, key=lambda output: output.id)  # so that sums do not depend on the order of the records
    ranks = {output.id: content_id(str(seed), "output", output.id) for output in outputs}
    assert len(ranks) == len(outputs), "two outputs have the same id"
    broken = [output for output in outputs if output.response is None]
    assert all(score_of[output.id] is None for output in broken), "an output without a response has a score"
    scored = [(output, score) for output in outputs if (score := score_of[output.id]) is not None]
    return _Group(
        prompt_id=outputs[0].prompt_id,
        scored=tuple(output for output, _ in scored),
        scores=tuple(score for _, score in scored),
        ranks=tuple(ranks[output.id] for output, _ in scored),
        all_malformed=len(broken) == len(outputs),
        malformed=min(broken, key=lambda output: ranks[output.id], default=None),
    )


def _table(groups: Sequence[_Group], lengths: Mapping[str, Length]) -> _Table:
    shape = len(groups), max((len(group.scored) for group in groups), default=0)
    scores_GK, responses_GK, thoughts_GK = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    copies_GK = np.zeros(shape, dtype=np.intp)
    for row, group in enumerate(groups):
        count = len(group.scored)
        copies_GK[row, :count] = 1
        scores_GK[row, :count] = group.scores
        responses_GK[row, :count] = [lengths[output.id].response for output in group.scored]
        thoughts_GK[row, :count] = [lengths[output.id].thought for output in group.scored]
    return _Table(scores_GK=scores_GK, responses_GK=responses_GK, thoughts_GK=thoughts_GK, copies_GK=copies_GK)


def _candidates(group: _Group, s_K: Floats, settings: PairingSettings) -> _Candidates:
    scored = [
        Scored(output=output, score=score, s=float(s), rank=rank)
        for output, score, s, rank in zip(group.scored, group.scores, s_K[: len(group.scored)], group.ranks, strict=True)
    ]
    best = max(scored, key=lambda item: (item.s, item.score, item.rank), default=None)
    rejected = choose_rejected(scored, settings.rejected)
    reason = _no_scored_pair(best, rejected, scored, settings.min_gap)
    if not scored:
        reason = "all outputs malformed" if group.all_malformed else "no output scored"
    return _Candidates(
        prompt_id=group.prompt_id, best=best, rejected=None if reason else rejected, malformed=group.malformed, reason=reason
    )


def _no_scored_pair(best: Scored | None, rejected: Scored | None, scored: Sequence[Scored], min_gap: float) -> str:
    """Return why the two make no pair, or nothing where they do."""
    if best is None or rejected is None or len(scored) < 2:
        return "fewer than two scored"
    if len({item.score for item in scored}) == 1:
        return "all scores equal"
    if min_gap > 0 and best.score - rejected.score < min_gap:
        return "gap below min_gap"
    return "identical texts" if best.output.text == rejected.output.text else ""


def _malformed_rejects(candidates: Sequence[_Candidates], share: Fraction, seed: int) -> set[str]:
    """Return the prompts whose rejected output shall be a malformed one: at most `share` of all the pairs there will be."""
    usable = sorted(
        (c for c in candidates if c.best is not None and c.malformed is not None),
        key=lambda c: content_id(str(seed), "prompt", c.prompt_id),
    )
    extra = [c.prompt_id for c in usable if c.rejected is None]
    replacing = [c.prompt_id for c in usable if c.rejected is not None]
    scored = sum(c.rejected is not None for c in candidates)
    if share < 1:
        extra = extra[: int(share * scored / (1 - share))]  # largest e with e <= share * (scored + e)
    left = int(share * (scored + len(extra))) - len(extra)
    return {*extra, *replacing[:left]}


def _pair(candidates: _Candidates, reject_malformed: bool) -> Pair | None:
    best, rejected, malformed = candidates.best, candidates.rejected, candidates.malformed
    if best is None or not (rejected or reject_malformed):
        return None
    if reject_malformed:
        assert malformed is not None
        return _record(best, malformed, "format_error", None, None)
    assert rejected is not None
    return _record(best, rejected.output, "scored", rejected.score, best.s - rejected.s)


def _record(best: Scored, rejected: Output, kind: PairKind, score: float | None, margin: float | None) -> Pair:
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
