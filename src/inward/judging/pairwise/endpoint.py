"""A chat behind an OpenAI-compatible server: many requests at once, retried, counted, stopped when the server is of no use.

It is asynchronous inside and synchronous outside. What a server can mend by itself (429, 5xx, time-outs, lost connections,
answers that are not JSON) is tried again with exponential backoff; what it refuses comes back as an error with its own words.
Several threads may ask at once: they share the limit on requests under way, the circuit that stops them all (`circuit`), and
the count of what was spent. The key is read from the environment for each call, kept nowhere, and blanked out of whatever the
server says.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from inward.config import EndpointSettings
from inward.engines.endpoint.client import PATIENT, Backoff, check_address, read_key, ssl_context
from inward.engines.endpoint.http_answer import Refusal, Trouble, Useless, blank
from inward.engines.endpoint.shared_loop import SharedLoop
from inward.errors import JudgeError
from inward.judging.pairwise.circuit import Circuit
from inward.judging.pairwise.comparer import Reply, Stopped
from inward.judging.pairwise.endpoint_answer import Answer, read_answer
from inward.judging.spending import Spending, Tally

FAILURES_TO_OPEN = 5
PROBE = "Hello."
"""What stands in every turn of the short request that finds out whether a server takes any request."""
Conversation = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """What all calls on one event loop share."""

    client: httpx.AsyncClient
    slots: asyncio.Semaphore
    probing: asyncio.Lock


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One call of `complete` or `first_tokens`: what its requests ask for, its key, and when it began."""

    asked: dict[str, int | bool]
    key: str | None
    openings: int


class EndpointChat:
    """Answers conversations by a model behind an endpoint, at most `settings.concurrency` at once over all threads.

    The circuit opens after `failures_to_open` requests in a row that fail with all their retries, after one that reached no
    server, and where a server refuses even a short request (`circuit`). Every call that is under way then raises `Stopped`, a
    `JudgeError` that holds what that call had answered. A later call tries again; its first failure opens the circuit again.
    """

    def __init__(
        self, settings: EndpointSettings, *, backoff: Backoff = PATIENT, failures_to_open: int = FAILURES_TO_OPEN
    ) -> None:
        check(settings)
        self._settings, self._backoff = settings, backoff
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._tally = Tally()
        self._circuit = Circuit(limit=failures_to_open)
        self._hold_until = 0.0  # on the monotonic clock: when the server wants to be asked again
        self._loop = SharedLoop(self._open_session, _close_session)

    @property
    def name(self) -> str:
        """The model and its address, and what is sent beside the conversation where the recipe sets it."""
        settings = self._settings
        sent = [f"limit={settings.limit_name}"] if settings.limit_name != "max_tokens" else []
        sent += [f"temperature={settings.temperature}"] if settings.temperature != 0.0 else []
        sent += [json.dumps(settings.extra_body, sort_keys=True)] if settings.extra_body else []
        return f"{settings.model} at {settings.base_url}" + (f" ({', '.join(sent)})" if sent else "")

    def __repr__(self) -> str:
        return f"EndpointChat({self.name!r})"

    def costs(self) -> Spending:
        """Return what all calls so far came to, those under way included. Any thread may ask at any time."""
        spent, prices = self._tally.read(), self._settings
        return replace(spent, money=(spent.prompt_tokens * prices.price_in + spent.completion_tokens * prices.price_out) / 1e6)

    def complete(self, conversations: Sequence[Conversation], *, max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order. Raises `Stopped` where the endpoint is gone or of no use."""
        return self._ask(conversations, {self._settings.limit_name: max_tokens})

    def first_tokens(self, conversations: Sequence[Conversation], *, count: int) -> list[Reply]:
        """Return one reply of one token a conversation, with the `count` likeliest in `top` if the server gives them.

        Raises as `complete`.
        """
        return self._ask(conversations, {self._settings.limit_name: 1, "logprobs": True, "top_logprobs": count})

    def _ask(self, conversations: Sequence[Conversation], asked: dict[str, int | bool]) -> list[Reply]:
        if not conversations:
            return []
        call = _Call(asked=asked, key=read_key(self._settings.key_env), openings=self._circuit.openings)
        return self._loop.run(lambda session: self._answer_all(session, conversations, call))

    async def _answer_all(self, session: _Session, conversations: Sequence[Conversation], call: _Call) -> list[Reply]:
        replies: dict[int, Reply] = {}
        waiting = enumerate(conversations)

        async def work() -> None:
            for index, conversation in waiting:
                async with session.slots:
                    replies[index] = await self._answer(session, conversation, index, call)

        tasks = [asyncio.create_task(work()) for _ in range(min(self._settings.concurrency, len(conversations)))]
        try:
            await asyncio.gather(*tasks)
        except JudgeError as error:
            raise Stopped(str(error), dict(replies)) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [replies[index] for index in range(len(conversations))]

    async def _answer(self, session: _Session, conversation: Conversation, index: int, call: _Call) -> Reply:
        tries = self._settings.retries + 1
        trouble = Trouble(reason="")
        for attempt in range(tries):
            await self._pause(trouble, index, attempt)
            self._circuit.check(call.openings)
            result = await self._try(session.client, conversation, call)
            if isinstance(result, Reply):
                self._circuit.answered()
                return result
            if isinstance(result, Refusal):
                return await self._refused(session, conversation, call, result)
            trouble = result
            if trouble.wait_s is not None and trouble.wait_s > self._backoff.longest:
                trouble = replace(trouble, reason=f"{trouble.reason}; it asks to wait {trouble.wait_s:.0f} s")
                tries = attempt + 1
                break
        return self._failed(replace(trouble, reason=f"{trouble.reason} (tried {tries} times)"), call)

    def _failed(self, trouble: Trouble, call: _Call) -> Reply:
        self._tally.add(Spending(failures=1))
        opens = self._circuit.failed()
        if trouble.gone:
            raise self._stop(f"cannot be reached: {trouble.reason}", call)
        if opens:
            raise self._stop(f"failed {self._circuit.failures} requests in a row, the last with: {trouble.reason}", call)
        return Reply(text=None, error=trouble.reason)

    async def _refused(self, session: _Session, conversation: Conversation, call: _Call, refusal: Refusal) -> Reply:
        """Return a refused request's reply, or stop where the server turns out to refuse a short one of its form too."""
        self._tally.add(Spending(failures=1))
        self._circuit.refused()
        async with session.probing:  # the others that were refused wait for what one of them finds out
            self._circuit.check(call.openings)
            if self._circuit.needs_probe(forbidden=refusal.forbidden):
                result = await self._try(session.client, [turn | {"content": PROBE} for turn in conversation], call)
                if isinstance(result, Reply):
                    self._circuit.probe_passed()
                elif isinstance(result, Refusal):
                    raise self._stop(f"refuses every request, even the shortest. {_advice(result)}", call)
        return Reply(text=None, error=refusal.reason)

    async def _pause(self, trouble: Trouble, index: int, attempt: int) -> None:
        """Wait as long as the last trouble asks for, and as long as the server asked any other request to wait."""
        chance = self._backoff.chance(index, attempt)
        if attempt:
            self._tally.add(Spending(retries=1))
            if not trouble.wait_s:
                await asyncio.sleep(self._backoff.wait_s(attempt, chance))
        while (left := self._hold_until - time.monotonic()) > 0:
            await asyncio.sleep(left + chance * self._backoff.first / 2)  # not all at once

    async def _try(self, client: httpx.AsyncClient, conversation: Conversation, call: _Call) -> Reply | Refusal | Trouble:
        """Send one request and return what came of it. Raises `JudgeError` where every other request would fail like it."""
        headers = {"Authorization": f"Bearer {call.key}"} if call.key else {}
        try:
            async with asyncio.timeout(self._settings.timeout_s):  # httpx limits the silences only, not the whole
                response = await client.post(self._url, content=self._body(conversation, call), headers=headers)
        except (TimeoutError, httpx.TimeoutException):
            return Trouble(reason=f"no answer within {self._settings.timeout_s:g} s")
        except httpx.RequestError as error:
            gone = isinstance(error, httpx.ConnectError)
            return Trouble(reason=blank(f"{type(error).__name__}: {error}", call.key), gone=gone)
        result = read_answer(response.status_code, response.headers, response.text, call.key)
        if isinstance(result, Useless):
            raise self._stop(result.reason, call)
        if isinstance(result, Answer):
            return self._booked(result)
        if isinstance(result, Trouble) and result.wait_s is not None and result.wait_s <= self._backoff.longest:
            self._hold_until = max(self._hold_until, time.monotonic() + result.wait_s)
        return result

    def _body(self, conversation: Conversation, call: _Call) -> bytes:
        settings = self._settings
        body: dict[str, Any] = {"model": settings.model, "messages": list(conversation)}
        if settings.temperature != "unset":
            body["temperature"] = settings.temperature
        # ASCII escapes carry any text, lone surrogates included
        return json.dumps(body | call.asked | settings.extra_body).encode("ascii")

    def _booked(self, answer: Answer) -> Reply:
        reply = answer.reply
        spent = Spending(
            answers=1,
            uncounted=int(not answer.counted),
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )
        self._tally.add(spent)
        return reply

    def _stop(self, reason: str, call: _Call) -> JudgeError:
        """Open the circuit, and return the error to raise: that of another call where it opened first."""
        self._circuit.check(call.openings)
        key = f" (its key is in {self._settings.key_env})" if self._settings.key_env else ""
        return self._circuit.open(
            JudgeError(
                f"the judge's endpoint {self._settings.base_url}{key} {reason}. Everything judged before is stored. "
                "Mend the endpoint or its settings, then run the same command again: it goes on where it stopped"
            )
        )

    def _open_session(self) -> _Session:
        concurrency = self._settings.concurrency
        client = httpx.AsyncClient(
            headers={"Content-Type": "application/json"},
            limits=httpx.Limits(max_connections=concurrency),
            timeout=self._settings.timeout_s,
            verify=ssl_context(),
        )
        return _Session(client=client, slots=asyncio.Semaphore(concurrency), probing=asyncio.Lock())


async def _close_session(session: _Session) -> None:
    await session.client.aclose()


def _advice(refusal: Refusal) -> str:
    if refusal.forbidden:
        return f"{refusal.reason}. See whether the key, the account or the region may use endpoint.model"
    return (
        f"{refusal.reason}. If the server does not know a parameter, see endpoint.limit_name, endpoint.temperature and "
        "endpoint.extra_body; if it takes no system turn, set judge.turn = 'user'"
    )


def check(settings: EndpointSettings) -> None:
    """Raise `UsageError` where the address cannot be one, or the key is missing. Asks the endpoint nothing."""
    check_address(settings.base_url, "endpoint.base_url")
    read_key(settings.key_env)
