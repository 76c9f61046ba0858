"""Which server takes the next request: the one with the fewest in flight, of those that are well.

A prompt's samples go to the server that has its keys and values already, unless another one has much less to do. A server that
fails gets no more requests; what it still has in flight may come to an end. Where none is left, requests wait for one to come
back, up to a limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inward.errors import EngineError

HOME_ADVANTAGE = 8
"""Requests that a prompt's own server may have in flight beyond the one with the fewest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Out:
    """Why a server gets no requests. `lasting`: waiting does not mend it."""

    reason: str
    lasting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a server can do: the name of its model, and whether it takes new weights."""

    name: str
    reload: bool


@dataclass(slots=True, kw_only=True, eq=False)
class Server:
    """One server and what is known of it. Only the event loop's thread touches what changes.

    Until `held_until` (monotonic clock) it asked to be left alone. `offer` is what it can do, once it was looked at. `there`
    are the log-probabilities of the reference that it gave when the model was loaded, and `fingerprint` what it says of itself.
    """

    address: str
    in_flight: int = 0
    out: Out | None = None
    held_until: float = 0.0
    offer: Offer | None = None
    there: tuple[float, ...] = ()
    fingerprint: str | None = None

    @property
    def name(self) -> str:
        """The name by which requests ask for the model."""
        assert self.offer is not None, "it was looked at before anything is asked of it"
        return self.offer.name

    @property
    def root(self) -> str:
        """The address without the version, under which servers keep what is not OpenAI's."""
        return self.address.removesuffix("/v1")


class Pool:
    """The servers of one event loop. All methods run on its thread."""

    def __init__(
        self, servers: Sequence[Server], *, in_flight: int, patience_s: float, failed: Callable[[Server], None]
    ) -> None:
        self._servers, self._in_flight, self._patience_s, self._failed = servers, in_flight, patience_s, failed
        self._waiting: list[asyncio.Future[None]] = []
        self._lost_at = time.monotonic()
        for server in servers:
            server.in_flight = 0  # those of an earlier loop ended with it

    async def take(self, home: Server | None = None) -> Server:
        """Wait for a server and count a request on it. Raises `EngineError` where none comes back in time."""
        began = time.monotonic()
        while True:
            if server := self._choose(home):
                server.in_flight += 1
                return server
            await self._wait(began)

    def give_back(self, server: Server) -> None:
        """Note that a request has ended."""
        server.in_flight -= 1
        self._wake()

    def fail(self, server: Server, out: Out) -> None:
        """Give a server no more requests; `failed` is told, once."""
        was_out, server.out = server.out, out
        if not any(other.out is None for other in self._servers) and not was_out:
            self._lost_at = time.monotonic()
        if not was_out:
            self._failed(server)
        self._wake()

    def rejoin(self, server: Server) -> None:
        server.out = None
        self._wake()

    def _require_any(self, began: float) -> None:
        """Raise `EngineError` where no server is left and waiting is of no use, or has been long enough."""
        outs = [server.out for server in self._servers]
        if any(out is None for out in outs):
            return
        if all(out is not None and out.lasting for out in outs):
            raise EngineError(f"no server can draw. {self._reasons()}. {ADVICE}")
        if self._patience_left(began) <= 0:
            raise EngineError(
                f"no server has come back within sampling.endpoint.patience_s = {self._patience_s:g} s. {self._reasons()}. "
                f"{ADVICE}"
            )

    def _choose(self, home: Server | None) -> Server | None:
        now = time.monotonic()
        free = [server for server in self._servers if not server.out and server.in_flight < self._in_flight]
        free = [server for server in free if server.held_until <= now]
        if not free:
            return None
        least = min(free, key=lambda server: server.in_flight)
        return home if home in free and home.in_flight <= least.in_flight + HOME_ADVANTAGE else least

    async def _wait(self, began: float) -> None:
        """Wait until a server has room, or may have. The request that waits `began` to do so then."""
        self._require_any(began)
        now = time.monotonic()
        held = [server.held_until - now for server in self._servers if not server.out and server.held_until > now]
        gone = all(server.out for server in self._servers)
        limit = self._patience_left(began) if gone else min(held) if held else None
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(limit):
                await waiting
        except TimeoutError:
            return
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _patience_left(self, began: float) -> float:
        return max(self._lost_at, began) + self._patience_s - time.monotonic()

    def _reasons(self) -> str:
        return "; ".join(f"{server.address} {server.out.reason}" for server in self._servers if server.out)


ADVICE = (
    "Everything finished is stored. Start the servers again or mend sampling.endpoint, then run the same command again: it "
    "goes on where it stopped"
)
