"""The completions of one call, drawn at whichever servers are well: a request that fails is sent again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from inward.engines.endpoint.client import Backoff
from inward.engines.endpoint.completions import Nonsense, Stretch, draw_body, read_drawn, read_scores, score_body
from inward.engines.endpoint.fleet import Fleet, Session
from inward.engines.endpoint.http_answer import Refusal, Trouble, Useless, cut
from inward.engines.endpoint.pool import ADVICE, Out, Server
from inward.engines.endpoint.serving import told
from inward.engines.engine import Completion, Decoding, Progress, Request
from inward.engines.phases import last_written, note_written, stretch_seed, take_stretch
from inward.engines.row import Row, Rules
from inward.errors import EngineError

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One call of `generate`. `homes` are the servers that drew for a prompt last, by its id."""

    fleet: Fleet
    rules: Rules
    decoding: Decoding
    seed: int
    vocabulary: int
    backoff: Backoff
    progress: Progress | None
    homes: dict[str, Server] = field(default_factory=dict)


async def draw_all(session: Session, requests: Sequence[Request], batch: Batch) -> list[Completion]:
    """Return all completions, by request and index. Raises `EngineError` where no server is left or a request keeps failing."""
    await batch.fleet.check(session)
    rows = [(request, Row(request.id, index, batch.rules)) for request in requests for index in request.rows]
    tasks = [asyncio.create_task(_complete(session, request, row, batch)) for request, row in rows]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _complete(session: Session, request: Request, row: Row, batch: Batch) -> Completion:
    async with session.rows:
        while row.finish is None:
            await _draw_stretch(session, request, row, batch)
        if not batch.decoding.logps:
            return row.completion()
        return row.completion(await _opening(session, request, row, batch))


async def _draw_stretch(session: Session, request: Request, row: Row, batch: Batch) -> None:
    logps = batch.decoding.logps
    stretch = Stretch(
        tokens=(*request.tokens, *row.tokens), limit=row.room, stops=batch.rules.stops, seed=stretch_seed(batch.seed, row)
    )
    drawn = await _ask(
        session,
        request.id,
        batch,
        lambda name: draw_body(name, stretch, batch.decoding, logps=logps),
        lambda content: read_drawn(content, stretch, vocabulary=batch.vocabulary, logps=logps),
    )
    length = len(row.tokens)
    take_stretch(row, drawn.tokens, drawn.logps)
    if batch.progress is not None:
        batch.progress(int(row.finish is not None), len(row.tokens) - length)


async def _opening(session: Session, request: Request, row: Row, batch: Batch) -> tuple[float, ...]:
    """Have the tokens that were written scored, where there are any, and return the log-probabilities of the opening."""
    written = last_written(row)
    if not written:
        return ()
    tokens = (*request.tokens, *row.tokens[:written])
    scores = await _ask(
        session, request.id, batch, lambda name: score_body(name, tokens), lambda content: read_scores(content, tokens)
    )
    return note_written(row, scores[len(request.tokens) - 1 :])


async def _ask(
    session: Session,
    prompt: str,
    batch: Batch,
    body: Callable[[str], dict[str, Any]],
    read: Callable[[dict[str, Any]], R],
) -> R:
    """Return what a server answers, sent again where one fails. Raises `EngineError` for a request that keeps failing."""
    tries, fleet = 0, batch.fleet
    while True:
        server = await session.pool.take(batch.homes.get(prompt))
        try:
            result = await session.line.post(f"{server.address}/completions", body(server.name))
        finally:
            session.pool.give_back(server)
        if isinstance(result, dict):
            if change := _change(server, result):
                session.pool.fail(server, fleet.changed(server, change))
                continue
            try:
                value = read(result)
            except Nonsense as error:
                result = Trouble(reason=f"answers nonsense: {error}")
            else:
                batch.homes[prompt] = server
                return value
        reason = told(result.reason)
        if isinstance(result, Refusal):
            raise EngineError(f"the server {server.address} refuses prompt {prompt}: it {reason}")
        if isinstance(result, Useless):
            session.pool.fail(server, Out(reason=reason, lasting=True))
            continue
        tries += not result.gone
        if result.wait_s is not None:
            server.held_until = max(server.held_until, time.monotonic() + min(result.wait_s, batch.backoff.longest))
        else:
            session.pool.fail(server, Out(reason=reason))
        if tries > fleet.settings.retries:
            raise EngineError(
                f"prompt {prompt} could not be drawn in {tries} tries (sampling.endpoint.retries), the last at "
                f"{server.address}, which {reason}. {ADVICE}"
            )


def _change(server: Server, content: dict[str, Any]) -> str | None:
    """Say that a server answers for another model than before, by its own words, or None."""
    model, fingerprint = content.get("model"), content.get("system_fingerprint")
    if isinstance(model, str) and model != server.name:
        return f"has changed its model under way: it answers as {cut(model)!r} instead of {server.name!r}"
    if not isinstance(fingerprint, str):
        return None
    if server.fingerprint not in (None, fingerprint):
        return f"has changed under way: its fingerprint was {server.fingerprint} and is {cut(fingerprint)}"
    server.fingerprint = fingerprint
    return None
