"""The decoding loop: rows come in with their prompts, step together, and make room for others when they have finished.

Prompts wait longest first. A finished row is ignored until so many have finished that it pays for the decoder to forget them;
once a quarter of the rows is free, waiting prompts take the place. All of it depends on token counts only, so that the same
call does the same thing on any machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from inward.engines.engine import Decoding, Progress, Request
from inward.engines.row import Row, Rules
from inward.engines.transformers.logps import token_logps
from inward.engines.transformers.nucleus import draw, row_key, uniforms


class Decoder(Protocol):
    """A model with the keys and values of the rows it is decoding. Dimensions: R rows, V vocabulary.

    `refillable` says whether prompts can be admitted while rows are active, and `idle_share` from which part of its rows on it
    pays to forget those that have finished.
    """

    @property
    def refillable(self) -> bool: ...

    @property
    def idle_share(self) -> float: ...

    def admit(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        """Append `counts[p]` rows of each prompt. All but the prompt's last token is read; the first `step` feeds that."""
        ...

    def step(self, tokens_R: Sequence[int]) -> torch.Tensor:
        """Feed one token to every row and return the next-token logits [R, V]."""
        ...

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keep these rows, ascending, and forget the others. Return them in the order in which they stand from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows of one request that are admitted together; a request with more samples than there are rows makes several."""

    request: Request
    first: int
    count: int


@dataclass(slots=True)
class _Active:
    row: Row
    key: int
    fed: int  # the token that the next step feeds


def cut_into_units(requests: Sequence[Request], rows: int) -> list[Unit]:
    """Return units of at most `rows` rows, longest prompt first, so that prompts read together are of similar length."""
    ordered = sorted(requests, key=lambda request: -len(request.tokens))
    return [Unit(request, first, min(rows, request.k - first)) for request in ordered for first in range(0, request.k, rows)]


def decode(
    decoder: Decoder,
    requests: Sequence[Request],
    rules: Rules,
    decoding: Decoding,
    *,
    rows: int,
    seed: int,
    progress: Progress | None,
) -> list[Row]:
    """Draw every row of every request and return them finished, in no particular order.

    Each holds the log-probabilities of the tokens after its opening if `decoding.logps`.
    """
    waiting = deque(cut_into_units(requests, rows))
    active: list[_Active] = []
    done: list[Row] = []
    while waiting or active:
        free = rows - len(active)
        if waiting and (not active or (decoder.refillable and 4 * free >= rows)):
            active += _admit(decoder, waiting, free, rules, seed)
        logits = decoder.step([entry.fed for entry in active])
        numbers = uniforms([entry.key for entry in active], [len(entry.row.tokens) for entry in active])
        going = [index for index, entry in enumerate(active) if entry.row.finish is None]
        tokens = draw(logits, decoding, numbers)
        for index in going:
            active[index].row.take(tokens[index])
            active[index].fed = active[index].row.tokens[-1]
        if decoding.logps:  # of what was taken: where the row writes, that is not what was drawn
            logps = token_logps(logits, [entry.fed for entry in active])
            for index in going:
                active[index].row.logps.append(logps[index])
        if progress is not None:
            progress(sum(active[index].row.finish is not None for index in going), len(going))
        over = sum(entry.row.finish is not None for entry in active)
        if over and over >= decoder.idle_share * len(active):
            kept = decoder.keep([index for index, entry in enumerate(active) if entry.row.finish is None])
            done += [entry.row for entry in active if entry.row.finish is not None]
            active = [active[index] for index in kept]
    return done


def _admit(decoder: Decoder, waiting: deque[Unit], free: int, rules: Rules, seed: int) -> list[_Active]:
    units: list[Unit] = []
    while waiting and waiting[0].count <= free:
        units.append(waiting.popleft())
        free -= units[-1].count
    if not units:
        return []
    decoder.admit([(*unit.request.tokens, *rules.opening) for unit in units], [unit.count for unit in units])
    return [
        _Active(
            Row(unit.request.id, index, rules),
            row_key(seed, unit.request.id, index),
            (*unit.request.tokens, *rules.opening)[-1],
        )
        for unit in units
        for index in unit.request.rows[unit.first : unit.first + unit.count]
    ]
