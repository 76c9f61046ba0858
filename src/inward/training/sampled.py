"""The reference as the sampler noted it while it drew, in place of a forward pass, and how far the two are apart.

The sampler is M_t and so is the reference, hence both compute the same log-probabilities, but for the order of their sums: one
token at a time there, whole packs here. In fp32 that is nothing; in bf16 it is the rounding that the first loss then starts
with instead of log 2. It is measured on a few pairs, and refused where it cannot be rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inward.errors import TrainingError
from inward.records import Output, Pair, content_id
from inward.training.examples import Example, ReferenceLogps
from inward.training.reference import require_finite

CHECKED = 8
"""Pairs whose log-probabilities are also computed by a forward pass."""
LIMIT = 0.05
"""Nats a token that rounding does not explain. SmolLM2 in bf16: 0.005 where the values are raw, 0.12 where they are of a
temperature of 0.8, 0.17 with top-p 0.95 as well (docs/log.md)."""
SHORT = 16
"""Tokens below which rounding, which grows as the root of their number, is allowed more of each: outputs of one token were
seen to differ by 0.07 nats, and may by four times `LIMIT`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """The sampler's log-probabilities against those of a forward pass, over the two sequences of each of `pairs` pairs.

    In nats: the `mean` and the `largest` absolute difference of a sequence, `allowed`, the mean that rounding may explain, and
    `per_token`, their sum over all the sequences' weights.
    """

    pairs: int
    mean: float
    largest: float
    allowed: float
    per_token: float


def sampled_logps(pairs: Sequence[Pair], outputs: Sequence[Output], examples: Sequence[Example]) -> list[ReferenceLogps]:
    """Return what the sampler's log-probabilities come to for every example, in the order of the examples.

    Raises TrainingError where one is not finite, naming the pair.
    """
    by_id, noted = {pair.id: pair for pair in pairs}, {output.id: output.logps for output in outputs}
    sums = [
        ReferenceLogps(
            pair_id=example.pair_id,
            chosen=_sum(noted[by_id[example.pair_id].chosen_id], example.chosen_weights),
            rejected=_sum(noted[by_id[example.pair_id].rejected_id], example.rejected_weights),
        )
        for example in examples
    ]
    require_finite(sums, "the sampler gave", "its model's weights may be damaged; try model.dtype = 'float32'")
    return sums


def to_check(examples: Sequence[Example]) -> list[Example]:
    """Return the examples to check: the same ones in whatever order they come."""
    return sorted(examples, key=lambda example: content_id("check", example.pair_id))[:CHECKED]


def discrepancy(
    checked: Sequence[Example], sampled: Sequence[ReferenceLogps], computed: Sequence[ReferenceLogps]
) -> Discrepancy:
    """Compare the sampler's values of the checked examples with those that a forward pass gave (at least one)."""
    noted, live = ({logps.pair_id: logps for logps in values} for values in (sampled, computed))
    apart = [
        abs(difference)
        for pair_id in (example.pair_id for example in checked)
        for difference in (noted[pair_id].chosen - live[pair_id].chosen, noted[pair_id].rejected - live[pair_id].rejected)
    ]
    weights = [math.fsum(tokens) for example in checked for tokens in (example.chosen_weights, example.rejected_weights)]
    weight = math.fsum(weights)
    return Discrepancy(
        pairs=len(checked),
        mean=math.fsum(apart) / len(apart),
        largest=max(apart),
        allowed=LIMIT * math.fsum(max(w, math.sqrt(SHORT * w)) for w in weights) / len(weights),
        per_token=math.fsum(apart) / weight if weight else 0.0,
    )


def require_rounding(apart: Discrepancy, where: str) -> None:
    """Raise TrainingError where the sampler's values cannot be those of the reference."""
    if apart.mean > apart.allowed:
        raise TrainingError(
            f"{where}: the sampler's log-probabilities are {apart.mean:.2f} nats a sequence from those of the model that they "
            f"should be of (at most {apart.largest:.2f}, or {apart.per_token:.3f} a token); rounding stays below "
            f"{apart.allowed:.2f}. They are of other weights, or tempered or filtered: start a new run without "
            "training.reference = 'sampler'"
        )


def _sum(logps: tuple[float, ...] | None, weights: Sequence[float]) -> float:
    assert logps is not None, "outputs of a run with training.reference = 'sampler' hold their log-probabilities"
    return math.fsum(weight * logp for logp, weight in zip(logps, weights, strict=True) if weight)
