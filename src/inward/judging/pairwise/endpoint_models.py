"""Which models an OpenAI-compatible server has: the one question to it that costs nothing."""

from __future__ import annotations

import difflib
import json
import time
from typing import Any

import httpx

from inward.config import EndpointSettings
from inward.engines.endpoint.client import read_key
from inward.engines.endpoint.http_answer import blank, cut
from inward.errors import UsageError

TIMEOUT_S = 10.0
MOST_BYTES = 4 * 2**20
"""A longer list of models is not read to its end, so that nothing is said of it."""
SHOWN = 8
"""How many models an error names."""
COMPARED = 1000
"""How many of a server's models are looked through for one with nearly the name that was asked for."""
SILENT = {404, 405, 501}
"""What servers answer that do not list their models."""


def check_served(settings: EndpointSettings, *, timeout_s: float = TIMEOUT_S) -> str | None:
    """Ask an endpoint for its models. Return what a person should know where it does not list any, else None.

    Raises UsageError where it cannot be reached, refuses the key, or lists models without `endpoint.model`.
    """
    key, where = read_key(settings.key_env), f"the endpoint {settings.base_url}"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.stream("GET", settings.base_url.rstrip("/") + "/models", headers=headers, timeout=timeout_s) as response:
            status, body = response.status_code, _read(response, time.monotonic() + timeout_s)
    except httpx.RequestError as error:
        reason = blank(f"{type(error).__name__}: {error}", key)
        raise UsageError(
            f"{where} cannot be reached ({reason}): start its server, or mend endpoint.base_url. A run asks it when it judges, "
            "not before"
        ) from None
    if status in (401, 403):
        named = "set endpoint.key_env" if settings.key_env is None else f"mend the key in {settings.key_env}"
        raise UsageError(f"{where} refuses the key (HTTP {status}): {named}")
    if status not in (200, *SILENT):
        raise UsageError(f"{where} answers its list of models with HTTP {status}: see to the server or to endpoint.base_url")
    models = None if status in SILENT else _models(body)
    if models is None:
        return f"{where} does not list its models (HTTP {status}), so nobody knows yet whether it has {settings.model!r}"
    if settings.model not in models:
        raise UsageError(_unknown(settings, [blank(name, key) for name in models]))
    return None


def _unknown(settings: EndpointSettings, models: list[str]) -> str:
    shown = [cut(name) for name in models[:COMPARED]]
    near = difflib.get_close_matches(settings.model, shown, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    has = ", ".join(map(repr, shown[:SHOWN])) + (", ..." if len(models) > SHOWN else "")
    return (
        f"the endpoint {settings.base_url} has no model {settings.model!r}{hint} It has: {has or 'none'}. Mend endpoint.model"
    )


def _read(response: httpx.Response, until: float) -> bytes:
    """Return the body of an answer; nothing of one that is too long, or that takes too long to come."""
    body = b""
    for part in response.iter_bytes():
        body += part
        if len(body) > MOST_BYTES or time.monotonic() > until:
            return b""
    return body


def _models(body: bytes) -> list[str] | None:
    """Return the ids that a list of models holds; None for whatever is not such a list."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        return None
    return [entry["id"] for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
