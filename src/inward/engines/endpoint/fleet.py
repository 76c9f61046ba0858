"""All servers of an engine: which model they should run, who gives it to them, and who brings them back when they were gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from inward.config import EndpointEngineSettings
from inward.engines.agreement import Reading
from inward.engines.endpoint.asking import Line
from inward.engines.endpoint.client import Backoff, read_key, ssl_context
from inward.engines.endpoint.pool import ADVICE, Out, Pool, Server
from inward.engines.endpoint.serving import Text, Unwell, examine, take_weights
from inward.engines.endpoint.shared_loop import SharedLoop
from inward.engines.endpoint.verify import Expected, Verified, check_drift, verify
from inward.errors import EngineError, UsageError

log = logging.getLogger(__name__)
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The model that all servers should run. `text` is one on which tokenizers differ, with its tokens in this model's."""

    weights: Path
    expected: Expected
    text: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What all calls on one event loop share. `rows` bounds the completions that are begun: those begun first end first."""

    line: Line
    pool: Pool
    rows: asyncio.Semaphore
    returning: dict[Server, asyncio.Task[None]] = field(default_factory=dict)


class Fleet:
    """The servers of an engine. They outlive calls and loops; `target` is what they should run, None before the first model."""

    def __init__(self, settings: EndpointEngineSettings, backoff: Backoff) -> None:
        self.settings, self.target = settings, None
        self.servers = tuple(Server(address=address.rstrip("/")) for address in settings.servers)
        self.verified: dict[Server, Verified] = {}
        self._backoff = backoff
        self._loop = SharedLoop(self._open, _close)

    target: Target | None

    def run(self, work: Callable[[Session], Coroutine[Any, Any, R]]) -> R:
        """Do work on the loop that all threads share, while servers that were gone are brought back."""

        async def begun(session: Session) -> R:
            for server in self.servers:
                if server.out:
                    self._bring_back(session, server)
            return await work(session)

        return self._loop.run(begun)

    def rest(self) -> None:
        """Ask the servers nothing more until the next call: none of them is brought back meanwhile."""
        self._loop.let_go()

    def start(self, target: Target) -> None:
        """Have all servers run a first model. Raises `UsageError` for one that is set up wrongly, or if none is there."""
        self.run(lambda session: self._start(session, target))
        self._loop.hold()  # servers are brought back between calls, too

    def look(self, text: Text, tokens: Sequence[int]) -> None:
        """Look at all servers, and give them nothing. Raises `UsageError` for any that a run could not start with."""
        self.run(lambda session: self._look(session, text, tokens))

    def take(self, target: Target) -> None:
        """Have all servers run another model. Raises `EngineError` where none can."""
        self.run(lambda session: self._take(session, target))
        self._loop.hold()

    async def check(self, session: Session) -> None:
        """Give no more requests to a server that no longer runs the model that it was given."""
        assert self.target is not None
        expected = self.target.expected
        await asyncio.gather(*(self._check(session, server, expected) for server in self.servers if not server.out))

    def changed(self, server: Server, reason: str) -> Out:
        """Return why a server that changed its model is out: for good, unless it can be given the right weights again."""
        return Out(reason=reason, lasting=server.offer is None or not server.offer.reload)

    async def _check(self, session: Session, server: Server, expected: Expected) -> None:
        try:
            await check_drift(session.line, server, expected)
        except Unwell as error:
            changed = "changed" in error.out.reason
            session.pool.fail(server, self.changed(server, error.out.reason) if changed else error.out)

    async def _look(self, session: Session, text: Text, tokens: Sequence[int]) -> None:
        problems = []
        for server in self.servers:
            try:
                server.offer = await examine(session.line, server, self.settings.model, tokens, text)
            except Unwell as error:
                problems.append(f"the server {server.address} {error.out.reason}")
        if problems:
            raise UsageError("; ".join(problems))

    async def _start(self, session: Session, target: Target) -> None:
        problems = await asyncio.gather(*(self._try_put(session, server, target, None) for server in self.servers))
        for server, problem in zip(self.servers, problems, strict=True):
            if problem is not None and (problem.out.lasting or not problem.gone):
                raise UsageError(f"the server {server.address} {problem.out.reason}")
        if all(problems):
            reasons = "; ".join(f"{s.address} {p.out.reason}" for s, p in zip(self.servers, problems, strict=True) if p)
            raise UsageError(f"no server of sampling.endpoint.servers answers: {reasons}. Start one, or mend the addresses")
        self._settle(session, problems, target)

    async def _take(self, session: Session, target: Target) -> None:
        before = self.target
        problems = await asyncio.gather(*(self._try_put(session, server, target, before) for server in self.servers))
        if all(problem is not None and problem.out.lasting for problem in problems):
            reasons = "; ".join(f"{s.address} {p.out.reason}" for s, p in zip(self.servers, problems, strict=True) if p)
            raise EngineError(f"no server runs the model {target.weights}: {reasons}. {ADVICE}")
        self._settle(session, problems, target)
        server = await session.pool.take()  # waits for one to come back where none is there
        session.pool.give_back(server)

    def _settle(self, session: Session, problems: Sequence[Unwell | None], target: Target) -> None:
        self.target = target
        for server, problem in zip(self.servers, problems, strict=True):
            if problem is not None:
                log.warning("the server %s %s; the others go on without it", server.address, problem.out.reason)
                session.pool.fail(server, problem.out)
            elif server.out:
                session.pool.rejoin(server)

    async def _try_put(self, session: Session, server: Server, target: Target, before: Target | None) -> Unwell | None:
        try:
            await self._put(session.line, server, target, before)
        except Unwell as error:
            return error
        return None

    async def _put(self, line: Line, server: Server, target: Target, before: Target | None) -> None:
        """Have a server run a model, and see that it does. Raises `Unwell`."""
        if server.offer is None:
            server.offer = await examine(line, server, self.settings.model, target.expected.reference, target.text)
        offer, earlier = server.offer, None
        if before is not None and before.expected.here is not None and len(server.there) == len(before.expected.here):
            earlier = Reading(there=server.there, here=before.expected.here)
        if offer.reload:
            await take_weights(line, server, target.weights)
        server.fingerprint = None
        try:
            self.verified[server] = await verify(line, server, target.expected, earlier)
        except Unwell as error:
            if offer.reload or not error.out.lasting:
                raise
            raise Unwell(
                f"{error.out.reason}. It takes no new weights: start it with VLLM_SERVER_DEV_MODE=1, or on {target.weights}",
                lasting=True,
            ) from None

    def _bring_back(self, session: Session, server: Server) -> None:
        if server not in session.returning or session.returning[server].done():
            session.returning[server] = asyncio.create_task(self._come_back(session, server))

    async def _come_back(self, session: Session, server: Server) -> None:
        """Look after a server that failed, again and again, until it is well: then it gets the model and requests."""
        number, attempt = self.servers.index(server), 0
        log.warning("the server %s gets no more requests: it %s", server.address, server.out and server.out.reason)
        while server.out:
            attempt += 1
            await asyncio.sleep(self._backoff.wait_s(attempt, self._backoff.chance(number, attempt)))
            if server.in_flight or self.target is None:  # what it still has may come to an end
                continue
            problem = await self._try_put(session, server, self.target, None)
            if problem is None:
                log.warning("the server %s is back", server.address)
                session.pool.rejoin(server)
            else:
                session.pool.fail(server, problem.out)

    def _open(self) -> Session:
        settings = self.settings
        connections = settings.in_flight * len(self.servers)
        client = httpx.AsyncClient(
            headers={"Content-Type": "application/json"},
            limits=httpx.Limits(max_connections=connections + len(self.servers)),
            timeout=settings.timeout_s,
            verify=ssl_context(),
        )
        session: Session

        def failed(server: Server) -> None:
            self._bring_back(session, server)

        pool = Pool(self.servers, in_flight=settings.in_flight, patience_s=settings.patience_s, failed=failed)
        line = Line(client=client, key=read_key(settings.key_env), timeout_s=settings.timeout_s)
        session = Session(line=line, pool=pool, rows=asyncio.Semaphore(connections))
        return session


async def _close(session: Session) -> None:
    for task in session.returning.values():
        task.cancel()
    await asyncio.gather(*session.returning.values(), return_exceptions=True)
    await session.line.client.aclose()
