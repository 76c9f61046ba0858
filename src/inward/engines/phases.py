"""Completions that somebody else draws in stretches: what to ask for next, and what becomes of what was drawn.

Engines that do not see each token as it is drawn (a server, vLLM) draw up to the next place where a scaffold may have to write:
the budget of a thought, then the limit. `Row` takes the tokens one by one as it does everywhere, so that the rules are the
same: an end of turn inside a thought is replaced by the closing, and where the model wrote the marker by itself, what it drew
after it is the beginning of its response.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from inward.engines.row import Row
from inward.records import content_id

UNKNOWN = math.nan
"""Stands for the log-probability of a token that the engine wrote, until `note_written`."""


def stretch_seed(seed: int, row: Row) -> int:
    """Return the seed below 2^63 of a row's next stretch: it depends on the row and how far it is, and on no other row."""
    return int(content_id(str(seed), row.request_id, str(row.index), str(len(row.tokens))), 16) >> 1


def take_stretch(row: Row, tokens: Sequence[int], logps: Sequence[float] | None = None) -> None:
    """Give a row what was drawn for it, with the log-probabilities where they are asked for, and write what has to follow.

    `tokens` are at most `row.room`, with nothing after an end token.
    """
    for number, token in enumerate(tokens):
        assert row.finish is None, "nothing is drawn after the end"
        row.take(token)
        if logps is not None:
            row.logps.append(UNKNOWN if row.written[-1] else logps[number])
        while row.forced and row.finish is None:
            row.take(token)  # what is drawn counts for nothing here
            if logps is not None:
                row.logps.append(UNKNOWN)


def last_written(row: Row) -> int:
    """Return how many tokens of a row stand up to the last one that the engine wrote: none where it wrote none."""
    return max((number + 1 for number, written in enumerate(row.written) if written), default=0)


def note_written(row: Row, logps: Sequence[float]) -> tuple[float, ...]:
    """Put the log-probabilities of the tokens that the engine wrote in their places; return those of the opening.

    `logps` are those of the row's tokens up to `last_written`, given what stands before each.
    """
    opening = len(row.tokens) - len(row.logps)
    for number in range(opening, last_written(row)):
        if row.written[number]:
            row.logps[number - opening] = logps[number]
    return tuple(logps[:opening])
