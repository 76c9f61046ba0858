"""Which of a prompt's scored outputs stands against the best one: the worst, or the one near two deviations below the mean.

"mu-2sigma" (arXiv 2502.16825): the output whose s is nearest to mean - 2 standard deviations over the prompt's scored outputs.
Best against worst declined there as K grew, since the worst of many is an oddity. Where we add to the paper:
- The standard deviation is the population's, as in the length-controlled score itself. So none of up to five outputs is below
  that point, and the rejected output is the worst.
- The paper's scores are a reward model's. Where a judge gives few different ones, the nearest may be as good as the best, so
  only outputs that are worse than it are candidates.
- Of two that are equally near, the lower one is taken. Other ties are settled as for the worst.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from inward.judging.length_control import DECIMALS
from inward.records import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One scored output with its length-controlled score s; `rank` settles ties."""

    output: Output
    score: float
    s: float
    rank: str


def choose_rejected(scored: Sequence[Scored], rule: Literal["worst", "mu-2sigma"]) -> Scored | None:
    """Return the output to reject, None where there is none at all."""
    if rule == "worst":
        return min(scored, key=lambda item: (item.s, item.score, item.rank), default=None)
    best = max(((item.s, item.score) for item in scored), default=None)
    worse = [item for item in scored if (item.s, item.score) != best] or scored
    mean = math.fsum(item.s for item in scored) / max(1, len(scored))
    deviation = math.sqrt(math.fsum((item.s - mean) ** 2 for item in scored) / max(1, len(scored)))
    point = mean - 2 * deviation
    return min(worse, key=lambda item: (round(abs(item.s - point), DECIMALS), item.s, item.score, item.rank), default=None)
