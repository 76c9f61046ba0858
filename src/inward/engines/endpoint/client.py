"""How a server is asked: its key, the waits between tries, and what makes a connection secure. Nothing is sent from here."""

from __future__ import annotations

import functools
import os
import random
import ssl
from dataclasses import dataclass

import httpx

from inward.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Seconds before the first retry, doubled for each further one up to `most`, each times a seeded factor in [1/2, 1].

    A server's Retry-After takes the place of the doubling; where it is above `longest`, the request fails at once.
    """

    first: float = 1.0
    most: float = 60.0
    longest: float = 600.0
    seed: int = 0

    def chance(self, index: int, attempt: int) -> float:
        """Return the random number in [0, 1) of a request's attempt."""
        return random.Random(f"{self.seed} {index} {attempt}").random()

    def wait_s(self, attempt: int, chance: float) -> float:
        """Return the seconds to wait before an attempt, the first retry being number 1."""
        return min(self.most, self.first * 2.0 ** min(attempt - 1, 60)) * (1 + chance) / 2


PATIENT = Backoff()


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """Return what all connections of this process share: making it takes longer than many a request."""
    return httpx.create_ssl_context()


def check_address(address: str, setting: str) -> None:
    """Raise `UsageError` where an address cannot be one."""
    try:
        httpx.URL(address)
    except httpx.InvalidURL as error:
        raise UsageError(f"{setting} {address!r} is no address: {error}") from None


def read_key(variable: str | None) -> str | None:
    """Return the key that an environment variable holds, or None where none is named. Raises `UsageError` where it has none."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"the endpoint's key is missing: set the environment variable {variable}")
    if not (key.isascii() and key.isprintable()) or " " in key:  # httpx would put such a key into its error
        raise UsageError(f"the environment variable {variable} holds no key: it has spaces or unprintable characters")
    return key
