"""One event loop for several threads, for as long as any of them has work on it.

What asyncio shares (a client's connections, a semaphore) belongs to one event loop, and a server may be asked by several
threads at once. Their work runs on one loop in a thread of its own, which starts with the first call and ends with the last one
under way, so that nothing is left running or open between calls, unless it is held.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running(Generic[S]):
    """A loop under way, what its work shares, and how to end it."""

    loop: asyncio.AbstractEventLoop
    session: S
    stop: asyncio.Event


class SharedLoop(Generic[S]):
    """Runs the coroutines of any number of threads on one event loop, beside one session that they share.

    `open_session` makes the session before the loop starts, `close_session` runs on the loop before it ends.
    """

    def __init__(self, open_session: Callable[[], S], close_session: Callable[[S], Coroutine[Any, Any, None]]) -> None:
        self._open_session, self._close_session = open_session, close_session
        self._lock = threading.Lock()
        self._calls = 0
        self._held = False
        self._running: _Running[S] | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[S], Coroutine[Any, Any, R]]) -> R:
        """Return what the coroutine returns, or raise what it raises. It is cancelled where the waiting is interrupted."""
        running = self._enter()
        try:
            future = asyncio.run_coroutine_threadsafe(work(running.session), running.loop)
            try:
                return future.result()
            finally:
                future.cancel()  # of no effect on one that is done
        finally:
            self._leave()

    def hold(self) -> None:
        """Keep the loop and the session between calls too, until `let_go`. Holding twice is holding once."""
        if not self._held:
            self._enter()
            self._held = True

    def let_go(self) -> None:
        """End what `hold` began. Doing it twice does nothing more."""
        if self._held:
            self._held = False
            self._leave()

    def _enter(self) -> _Running[S]:
        with self._lock:
            if self._running is None:
                session = self._open_session()
                ready: Future[_Running[S]] = Future()
                self._thread = threading.Thread(target=asyncio.run, args=(self._serve(session, ready),), daemon=True)
                self._thread.start()
                self._running = ready.result()
            self._calls += 1
            return self._running

    def _leave(self) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls:
                return
            running, thread = self._running, self._thread
            assert running is not None, "a call is under way"
            assert thread is not None, "a call is under way"
            self._running = self._thread = None
            running.loop.call_soon_threadsafe(running.stop.set)
            thread.join()

    async def _serve(self, session: S, ready: Future[_Running[S]]) -> None:
        stop = asyncio.Event()
        ready.set_result(_Running(loop=asyncio.get_running_loop(), session=session, stop=stop))
        await stop.wait()
        await self._close_session(session)
