"""One request to a server: sent, limited in time, and read as far as any answer can be read."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx

from inward.engines.endpoint.http_answer import Refusal, SettingNames, Trouble, Useless, blank, read_http

NAMES = SettingNames(
    key="sampling.endpoint.key_env",
    model="sampling.endpoint.model",
    address="sampling.endpoint.servers",
    path="/completions",
)
Result = dict[str, Any] | Refusal | Trouble | Useless


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What requests are sent over: the client's connections, the key, and the seconds that the whole of a try may take."""

    client: httpx.AsyncClient
    key: str | None
    timeout_s: float

    async def post(self, url: str, body: dict[str, Any]) -> Result:
        """Send a JSON object and return the one that answers it, or what the answer comes to. Never raises for a server."""
        return await self.send("POST", url, json.dumps(body).encode("ascii"))

    async def send(self, method: str, url: str, content: bytes | None = None, *, empty: bool = False) -> Result:
        """As `post`. Where an `empty` answer or plain text will do, one of HTTP 200 is an empty object."""
        answer = await self.fetch(method, url, content)
        if isinstance(answer, Trouble):
            return answer
        result = read_http(answer.status_code, answer.headers, answer.text, self.key, NAMES)
        return {} if empty and answer.status_code == 200 and isinstance(result, Trouble) else result

    async def fetch(self, method: str, url: str, content: bytes | None = None) -> httpx.Response | Trouble:
        """Send a request and return whatever answers it, or why nothing did.

        A connection that was kept may be one that the server has closed: the request is then sent once more, over another one.
        Nothing that is asked of a server does anything else the second time.
        """
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            async with asyncio.timeout(self.timeout_s):  # httpx limits the silences only, not the whole
                try:
                    return await self.client.request(method, url, content=content, headers=headers)
                except (httpx.ReadError, httpx.RemoteProtocolError):
                    return await self.client.request(method, url, content=content, headers=headers)
        except (TimeoutError, httpx.TimeoutException):
            return Trouble(reason=f"gave no answer within sampling.endpoint.timeout_s = {self.timeout_s:g} s")
        except httpx.RequestError as error:
            gone = isinstance(error, httpx.ConnectError)
            return Trouble(reason=blank(f"cannot be reached ({type(error).__name__}: {error})", self.key), gone=gone)
