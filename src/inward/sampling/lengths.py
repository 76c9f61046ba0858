"""How long an output's thought and response are in tokens, from the tokens that were sampled.

Nothing is tokenised again: that could give other tokens than the model drew. The response is the end of an output's text, so
its tokens are the shortest run at the output's end whose text still ends with it. Where the response begins inside a token,
that token counts; special tokens (the end of the turn) do not, nor do they stand in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inward.records import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Of one output: its response, and what comes before it. The response marker, which all outputs have, is in `thought`."""

    response: int
    thought: int


Measure = Callable[[Sequence[Output]], dict[str, Length]]
"""Outputs to their lengths, by id."""


def token_length(output: Output, decode: Callable[[Sequence[int]], str], special: frozenset[int]) -> Length:
    """Return both lengths. `decode` leaves out special tokens and turns the output's tokens into its text.

    An output without a response is all thought.
    """
    if output.response is None:
        return Length(response=0, thought=_plain(output.tokens, special))
    assert decode(output.tokens).rstrip().endswith(output.response), f"output {output.id} is of another tokenizer"
    low, high = 0, len(output.tokens)  # the text from `low` on ends with the response, that from `high` on does not
    while high - low > 1:
        middle = (low + high) // 2
        if decode(output.tokens[middle:]).rstrip().endswith(output.response):
            low = middle
        else:
            high = middle
    return Length(response=_plain(output.tokens[low:], special), thought=_plain(output.tokens[:low], special))


def _plain(tokens: Sequence[int], special: frozenset[int]) -> int:
    return sum(token not in special for token in tokens)
