"""The length-controlled score s that pairs are made by, once for all who go by it (METHOD.md step 4; paper section 2.3).

    s = N(score) - rho * N(length of the response) - thought_weight * N(length of the thought),    N(v) = (v - mean) / std

with mean and standard deviation over the outputs of one prompt. Pairing chooses by s, an adaptive tournament asks until it
knows the best and the worst s, and a cascade hands a prompt on where s leaves them in doubt. The last term is ours: the paper
does not control the length of thoughts.

Scores that are exactly equal have N = 0, whatever their unit; Bradley-Terry strengths are rounded where they are fitted, so
that responses which the battles do not tell apart are equal. What sums leave of a tie in s is rounded away here, once for all.
"""

from __future__ import annotations

import numpy as np

from inward.statistics import Counts, Floats, normalise_rows

DECIMALS = 9
"""Of s: where two values differ by less, rounding made the difference."""


def length_controlled(
    scores_GK: Floats,
    lengths_GK: Floats,
    copies_GK: Counts,
    rho: float,
    *,
    thoughts_GK: Floats | None = None,
    thought_weight: float = 0.0,
) -> Floats:
    """Return s (G, K) of the responses to G prompts, NaN where there is no response.

    `copies_GK` is how many outputs of the prompt have this response, 0 for padding; all of them count in N. `thoughts_GK` are
    lengths of thoughts. Lengths are in any unit.
    """
    s_GK = normalise_rows(scores_GK, copies_GK) - rho * normalise_rows(lengths_GK, copies_GK)
    if thoughts_GK is not None:
        s_GK = s_GK - thought_weight * normalise_rows(thoughts_GK, copies_GK)
    return np.round(s_GK, DECIMALS) + 0.0  # of two zeros only the positive one is left
