"""Whether a server runs the weights that it should, and whether the log-probabilities that it gives are raw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inward.engines.agreement import TOLERANCE, Reading, disagreement, distance
from inward.engines.endpoint.asking import Line
from inward.engines.endpoint.completions import Nonsense, Stretch, draw_body, read_drawn, read_scores, score_body
from inward.engines.endpoint.pool import Server
from inward.engines.endpoint.serving import Unwell, list_models, require_object
from inward.engines.engine import Decoding

SAMPLE_TOKENS = 8
FLAT = Decoding(temperature=2.0, top_p=1.0, top_k=16)
"""A draw whose tempered and filtered log-probabilities (-3 to 0) are far from the raw ones, of peaked and of flat models."""
RAW_WITHIN = 3 * TOLERANCE
DRIFT = TOLERANCE / 2
"""Nats by which one server's log-probabilities may move: what is computed beside a text alters its rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a server should run: the reference, what a pass here gave it (None where none was made), the vocabulary."""

    reference: tuple[int, ...]
    here: tuple[float, ...] | None
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was found: the longest text that a server takes (tokens, if it says so), whether its log-probabilities are raw."""

    context: int | None
    raw: bool


async def score(line: Line, server: Server, tokens: Sequence[int]) -> tuple[float, ...]:
    """Return the log-probabilities that a server's model gives to tokens after the first. Raises `Unwell`."""
    result = await line.post(f"{server.address}/completions", score_body(server.name, tokens))
    try:
        return read_scores(require_object(result, "could not score a text: "), tokens)
    except Nonsense as error:
        raise Unwell(str(error), lasting=True) from None


async def verify(line: Line, server: Server, expected: Expected, before: Reading | None = None) -> Verified:
    """Look at what a server runs now, and note what it gives the reference (`Server.there`). Raises `Unwell`.

    `before` is the reading of the weights that it had until now.
    """
    served = {model.name: model for model in await list_models(line, server)}
    if server.name not in served:
        raise Unwell(f"no longer serves {server.name!r}", lasting=True)
    there = await score(line, server, expected.reference)
    if expected.here is not None:
        problem = disagreement(Reading(there=there, here=expected.here), before)
        if problem is not None:
            raise Unwell(f"does not run the weights that it should: {problem}", lasting=True)
    raw = await _is_raw(line, server, expected)
    server.there = there
    return Verified(context=served[server.name].context, raw=raw)


async def check_drift(line: Line, server: Server, expected: Expected) -> None:
    """Raise `Unwell` where a server no longer gives the reference what it gave when the model was loaded."""
    there = await score(line, server, expected.reference)
    apart = distance(there, server.there)
    if apart > DRIFT:
        raise Unwell(
            f"has changed its model under way: its log-probabilities of a short text moved by {apart:.2f} nats on average",
            lasting=True,
        )


async def _is_raw(line: Line, server: Server, expected: Expected) -> bool:
    """Say whether drawn tokens come with the log-probabilities that the same tokens have as a given text. Raises `Unwell`."""
    stretch = Stretch(tokens=expected.reference, limit=SAMPLE_TOKENS, stops=frozenset(), seed=0)
    result = await line.post(f"{server.address}/completions", draw_body(server.name, stretch, FLAT, logps=True))
    try:
        drawn = read_drawn(require_object(result), stretch, vocabulary=expected.vocabulary, logps=True)
    except Nonsense as error:
        if "log-probabilities" in str(error):
            return False
        raise Unwell(str(error), lasting=True) from None
    assert drawn.logps is not None
    scores = await score(line, server, (*expected.reference, *drawn.tokens))
    return distance(drawn.logps, scores[-len(drawn.tokens) :]) <= RAW_WITHIN
