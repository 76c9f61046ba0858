"""Where in an output's tokens its response begins, and how long both parts are, from the tokens that were sampled.

Nothing is tokenised again: that could give other tokens than the model drew. The response is the end of an output's text, so
its tokens are the shortest run at the output's end whose text still ends with it. Where the response begins inside a token,
that token counts; special tokens (the end of the turn) do not, nor do they stand in the text.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inward.records import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Of one output: its response, and what comes before it. The response marker, which all outputs have, is in `thought`."""

    response: int
    thought: int


Decode = Callable[[Sequence[int]], str]
"""Tokens to their text, without special ones: what makes `Output.text`."""
Measure = Callable[[Sequence[Output]], dict[str, Length]]
"""Outputs to their lengths, by id."""


def tokens_until(tokens: Sequence[int], reached: Callable[[int], bool]) -> int:
    """Return the least number of tokens by which a place in the text is `reached`, all of them where none is enough.

    What is reached by some tokens is so by more: the range is halved, because every question costs decoding.
    """
    return bisect.bisect_left(range(len(tokens)), True, key=reached)


def token_length(output: Output, decode: Decode, special: frozenset[int]) -> Length:
    """Return both lengths. `decode` leaves out special tokens and turns the output's tokens into its text.

    An output without a response is all thought.
    """
    if output.response is None:
        return Length(response=0, thought=_plain(output.tokens, special))
    tokens, response = output.tokens, output.response

    def inside(count: int) -> bool:
        return not decode(tokens[count:]).rstrip().endswith(response)

    assert not inside(0), f"output {output.id} is of another tokenizer"
    start = tokens_until(tokens, inside) - 1
    return Length(response=_plain(tokens[start:], special), thought=_plain(tokens[:start], special))


def _plain(tokens: Sequence[int], special: frozenset[int]) -> int:
    return sum(token not in special for token in tokens)
