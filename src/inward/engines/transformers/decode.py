"""The decoding loop: rows come in with their prompts, step together, and make room for others when they have finished.

Prompts wait longest first. A finished row is ignored until so many have finished that it pays for the decoder to forget them;
once a quarter of the rows is free, waiting prompts take the place. All of it depends on token counts only, so that the same
call does the same thing on any machine of its kind.

A device must not wait for the processor to look at each token. So a step is fed what the step before has drawn, on the device,
and the tokens are read some steps later (`late`): a row that has ended is found out then, and what it drew since is thrown
away. Where rows write (a scaffold), or may reach their limit, or room is made, everything is read first. On a processor `late`
is 0: tokens are there as soon as they are drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from inward.engines.engine import Decoding, Progress, Request
from inward.engines.row import Row, Rules
from inward.engines.transformers.later import Later
from inward.engines.transformers.logps import token_logps
from inward.engines.transformers.nucleus import check_finite, draw, row_key, uniforms
from inward.hardware import to_device


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

    def step(self, tokens_R: torch.Tensor) -> torch.Tensor:
        """Feed one token to every row, all on the model's device, and return the next-token logits [R, V] there."""
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
    first: int  # the token that the row's first step feeds


@dataclass(slots=True)
class _Unread:
    tokens: Later
    logps: Later | None


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
    device: torch.device,
    late: int = 0,
) -> list[Row]:
    """Draw every row of every request and return them finished, in no particular order.

    Each holds the log-probabilities of the tokens after its opening if `decoding.logps`. `device` is the decoder's, and tokens
    are read up to `late` steps after they were drawn.
    """
    waiting = deque(cut_into_units(requests, rows))
    active: list[_Active] = []
    done: list[Row] = []
    unread: deque[_Unread] = deque()
    fed_R = torch.empty(0, dtype=torch.long, device=device)
    while waiting or active:
        free = rows - len(active)
        if waiting and (not active or (decoder.refillable and 4 * free >= rows)):
            new = _admit(decoder, waiting, free, rules, seed)
            active += new
            fed_R = torch.cat([fed_R, _on(device, [entry.first for entry in new])])
        logits_RV = decoder.step(fed_R)
        places = [len(entry.row.tokens) + len(unread) for entry in active]
        drawn_R = draw(logits_RV, decoding, uniforms([entry.key for entry in active], places))
        if rules.watch is not None:
            fed_R = _write(active, drawn_R, logits_RV, decoding.logps, progress)
        else:
            fed_R = drawn_R.clamp(min=0)
            logps = Later(token_logps(logits_RV, fed_R)) if decoding.logps else None
            unread.append(_Unread(Later(drawn_R), logps))
            going = [place for entry, place in zip(active, places, strict=True) if entry.row.finish is None]
            ends = max(going) + 1 >= rules.max_new_tokens
            while len(unread) > (0 if ends else late):
                _read(unread.popleft(), active, progress)
        over = sum(entry.row.finish is not None for entry in active)
        if over and over >= decoder.idle_share * len(active):
            while unread:
                _read(unread.popleft(), active, progress)
            kept = decoder.keep([index for index, entry in enumerate(active) if entry.row.finish is None])
            done += [entry.row for entry in active if entry.row.finish is not None]
            active, fed_R = [active[index] for index in kept], fed_R[_on(device, kept)]
    return done


def _read(unread: _Unread, active: Sequence[_Active], progress: Progress | None) -> None:
    """Give the rows what a step has drawn for them; those that have ended by then are left alone."""
    going = _take(active, unread.tokens.read(), progress)
    if unread.logps is not None:
        _note(active, going, unread.logps.read())


def _write(
    active: Sequence[_Active], drawn_R: torch.Tensor, logits_RV: torch.Tensor, logps: bool, progress: Progress | None
) -> torch.Tensor:
    """Give the rows what was drawn at once and return what they have taken [R]: where they write, that is something else."""
    going = _take(active, drawn_R.tolist(), progress)
    taken_R = _on(drawn_R.device, [entry.row.tokens[-1] for entry in active])
    if logps:
        _note(active, going, token_logps(logits_RV, taken_R).tolist())
    return taken_R


def _take(active: Sequence[_Active], tokens: list[int], progress: Progress | None) -> list[int]:
    check_finite(tokens)
    going = [index for index, entry in enumerate(active) if entry.row.finish is None]
    for index in going:
        active[index].row.take(tokens[index])
    if progress is not None:
        progress(sum(active[index].row.finish is not None for index in going), len(going))
    return going


def _note(active: Sequence[_Active], going: Sequence[int], logps: list[float]) -> None:
    for index in going:
        active[index].row.logps.append(logps[index])


def _on(device: torch.device, numbers: Sequence[int]) -> torch.Tensor:
    return to_device(torch.tensor(numbers, dtype=torch.long), device)


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
