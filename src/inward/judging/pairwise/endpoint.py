"""A chat behind an OpenAI-compatible server: many requests at once, retried, counted, stopped when the server is gone.

Asynchronous inside, synchronous outside. What a server can mend by itself (429, 5xx, time-outs, lost connections, answers
that are not JSON) is tried again with exponential backoff; what it refuses comes back as an error with its own words. The
key is read from the environment for each batch, kept nowhere, and blanked out of whatever the server says.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from inward.config import EndpointSettings
from inward.errors import JudgeError, UsageError
from inward.judging.pairwise.comparer import Reply, Stopped
from inward.judging.pairwise.endpoint_answer import complaint_of, cut, retry_after, text_of, top_of, usage_of
from inward.judging.spending import Spending

FAILURES_TO_OPEN = 5
SECRET = 8
"""Characters from which on a key is taken for a secret and blanked out; servers without keys are given a word like EMPTY."""
_AGAIN = {408, 425, 429}
_USELESS = {401: "refuses the key", 402: "wants to be paid", 404: "knows no such model or address"}
"""Refusals that every other request would meet too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Seconds before the first retry, doubled for each further one up to `most`, each times a seeded factor in [1/2, 1].

    A server's Retry-After takes the place of the doubling; where it is above `longest`, the request fails at once.
    """

    first: float = 1.0
    most: float = 60.0
    longest: float = 600.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trouble:
    """A try that may succeed when repeated; `wait` is what the server asked for, in seconds.

    `gone`: there is no server at all, which is no fault of this request.
    """

    reason: str
    wait: float | None = None
    gone: bool = False


PATIENT = Backoff()


class EndpointChat:
    """Answers conversations by a model behind an endpoint, at most `settings.concurrency` at once.

    `failures_to_open` requests in a row that fail with all their retries open the circuit, or one that never reached a server:
    `Stopped`, a `JudgeError` that holds what was answered. A later call tries again, and its first failure opens it again.
    """

    def __init__(
        self, settings: EndpointSettings, *, backoff: Backoff = PATIENT, failures_to_open: int = FAILURES_TO_OPEN
    ) -> None:
        check(settings)
        self._settings, self._backoff, self._failures_to_open = settings, backoff, failures_to_open
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._spending = Spending()
        self._in_a_row = 0
        self._hold = 0.0  # until when, on the monotonic clock, the server asked to be left alone

    @property
    def name(self) -> str:
        return f"{self._settings.model} at {self._settings.base_url}"

    def __repr__(self) -> str:
        return f"EndpointChat({self.name!r})"

    def costs(self) -> Spending:
        """Return what all calls so far came to."""
        return self._spending

    def complete(self, conversations: Sequence[Sequence[dict[str, str]]], *, max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order. Raises `Stopped` where the endpoint is gone or of no use.

        Not for a thread with a running event loop: use `asyncio.to_thread` there.
        """
        return asyncio.run(self._complete(conversations, {"max_tokens": max_tokens}))

    def first_tokens(self, conversations: Sequence[Sequence[dict[str, str]]], *, count: int) -> list[Reply]:
        """Return one reply of one token a conversation, with the `count` likeliest in `top` if the server gives them.

        Raises as `complete`.
        """
        asked = {"max_tokens": 1, "logprobs": True, "top_logprobs": count}
        return asyncio.run(self._complete(conversations, asked))

    async def _complete(self, conversations: Sequence[Sequence[dict[str, str]]], asked: dict[str, int | bool]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        todo = enumerate(conversations)
        key = _key(self._settings)

        async def work(client: httpx.AsyncClient) -> None:
            for index, conversation in todo:
                body = {
                    "model": self._settings.model,
                    "messages": list(conversation),
                    "temperature": 0,
                    **asked,
                }
                # ASCII escapes carry any text, lone surrogates included
                replies[index] = await self._answer(client, json.dumps(body).encode("ascii"), index, key)

        workers = min(self._settings.concurrency, len(conversations))
        async with self._client(key) as client:
            tasks = [asyncio.create_task(work(client)) for _ in range(workers)]
            try:
                await asyncio.gather(*tasks)
            except JudgeError as error:
                raise Stopped(str(error), dict(replies)) from error
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [replies[index] for index in range(len(conversations))]

    def _client(self, key: str | None) -> httpx.AsyncClient:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        limits = httpx.Limits(max_connections=self._settings.concurrency)
        return httpx.AsyncClient(headers=headers, limits=limits, timeout=self._settings.timeout_s)

    async def _answer(self, client: httpx.AsyncClient, body: bytes, index: int, key: str | None) -> Reply:
        tries = self._settings.retries + 1
        trouble = _Trouble(reason="")
        for attempt in range(tries):
            await self._pause(trouble, index, attempt)
            result = await self._try(client, body, key)
            if isinstance(result, Reply):
                self._in_a_row = 0
                return result
            trouble = result
            if trouble.wait is not None and trouble.wait > self._backoff.longest:
                trouble = replace(trouble, reason=f"{trouble.reason}; it asks to wait {trouble.wait:.0f} s")
                tries = attempt + 1
                break
        return self._failed(replace(trouble, reason=f"{trouble.reason} (tried {tries} times)"))

    def _failed(self, trouble: _Trouble) -> Reply:
        self._in_a_row += 1
        self._book(failures=1)
        if trouble.gone:
            raise self._stop(f"cannot be reached: {trouble.reason}")
        if self._in_a_row >= self._failures_to_open:
            raise self._stop(f"failed {self._in_a_row} requests in a row, the last with: {trouble.reason}")
        return Reply(text=None, error=trouble.reason)

    async def _pause(self, trouble: _Trouble, index: int, attempt: int) -> None:
        """Wait as long as the last trouble asks for, and as long as the server asked any other request to wait."""
        chance = random.Random(f"{self._backoff.seed} {index} {attempt}").random()
        if attempt:
            self._book(retries=1)
            doubled = min(self._backoff.most, self._backoff.first * 2.0 ** min(attempt - 1, 60))
            if not trouble.wait:
                await asyncio.sleep(doubled * (1 + chance) / 2)
        while (left := self._hold - time.monotonic()) > 0:
            await asyncio.sleep(left + chance * self._backoff.first / 2)  # not all at once

    async def _try(self, client: httpx.AsyncClient, body: bytes, key: str | None) -> Reply | _Trouble:
        try:
            async with asyncio.timeout(self._settings.timeout_s):  # httpx limits the silences only, not the whole
                response = await client.post(self._url, content=body)
        except (TimeoutError, httpx.TimeoutException):
            return _Trouble(reason=f"no answer within {self._settings.timeout_s:g} s")
        except httpx.RequestError as error:
            gone = isinstance(error, httpx.ConnectError)
            return _Trouble(reason=_blank(f"{type(error).__name__}: {error}", key), gone=gone)
        text, status = _blank(response.text, key), response.status_code  # before anything is cut short
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        said = _blank(f"HTTP {status}: {complaint_of(content, text)}", key)
        if status in _AGAIN or status >= 500:
            wait = retry_after(response.headers.get("Retry-After"))
            if wait is not None and wait <= self._backoff.longest:
                self._hold = max(self._hold, time.monotonic() + wait)
            return _Trouble(reason=said, wait=wait)
        if status in _USELESS:
            raise self._stop(f"{_USELESS[status]}: {said}")
        if status != 200:
            return self._refused(said)
        if not isinstance(content, dict):
            return _Trouble(reason=f"the answer is not a JSON object: {cut(text)}")
        if content.get("error"):  # some gateways report what failed behind them with status 200
            return _Trouble(reason=said)
        return self._read(content, key)

    def _refused(self, said: str) -> Reply:
        self._book(failures=1)
        return Reply(text=None, error=said)

    def _read(self, content: dict[str, Any], key: str | None) -> Reply:
        usage = usage_of(content)
        read, written = usage or (0, 0)
        self._book(answers=1, uncounted=int(usage is None), read=read, written=written)
        text, error = text_of(content)
        if text is not None:
            text = _blank(text, key)
        top = tuple((_blank(token, key), logp) for token, logp in top_of(content)) or None
        return Reply(text=text, error=error, prompt_tokens=read, completion_tokens=written, top=top)

    def _book(
        self, *, answers: int = 0, failures: int = 0, retries: int = 0, uncounted: int = 0, read: int = 0, written: int = 0
    ) -> None:
        past = self._spending
        prompt_tokens, completion_tokens = past.prompt_tokens + read, past.completion_tokens + written
        self._spending = Spending(
            answers=past.answers + answers,
            failures=past.failures + failures,
            retries=past.retries + retries,
            uncounted=past.uncounted + uncounted,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            money=(prompt_tokens * self._settings.price_in + completion_tokens * self._settings.price_out) / 1e6,
        )

    def _stop(self, what: str) -> JudgeError:
        key = f" (its key is in {self._settings.key_env})" if self._settings.key_env else ""
        return JudgeError(
            f"the judge's endpoint {self._settings.base_url}{key} {what}. Everything judged before is stored. "
            "Mend the endpoint or its settings, then run the same command again: it goes on where it stopped"
        )


def check(settings: EndpointSettings) -> None:
    """Raise `UsageError` where the address cannot be one, or the key is missing. Asks the endpoint nothing."""
    try:
        httpx.URL(settings.base_url)
    except httpx.InvalidURL as error:
        raise UsageError(f"endpoint.base_url {settings.base_url!r} is no address: {error}") from None
    _key(settings)


def _key(settings: EndpointSettings) -> str | None:
    if settings.key_env is None:
        return None
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise UsageError(f"the endpoint's key is missing: set the environment variable {settings.key_env}")
    if not (key.isascii() and key.isprintable()) or " " in key:  # httpx would put such a key into its error
        raise UsageError(f"the environment variable {settings.key_env} holds no key: it has spaces or unprintable characters")
    return key


def _blank(text: str, key: str | None) -> str:
    return text.replace(key, "[key]") if key and len(key) >= SECRET else text
