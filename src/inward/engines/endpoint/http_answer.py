"""What any server's answer comes to: a JSON object, a refusal, a trouble that may pass, or the end of all asking.

Everything here is a function of status, headers and body alone, and takes whatever a server may send.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

MESSAGE_CHARACTERS = 500
"""As much of a server's message is kept."""
MOST_WAIT_S = 366 * 86400.0
"""A server that asks for a longer wait is taken to ask for this one."""
SECRET_CHARACTERS = 8
"""A key of so many characters is a secret and is blanked out; servers without keys are given a word like EMPTY."""
_AGAIN = {408, 425, 429}
_REDIRECTS = {301, 302, 303, 307, 308}


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingNames:
    """The settings that say which server is asked for what, as messages name them; `path` is what is added to the address."""

    key: str
    model: str
    address: str
    path: str

    def mend(self, status: int) -> str | None:
        """Say what mends a refusal that every other request would meet too; None for one that concerns this request alone."""
        return {
            401: f"refuses the key: mend the key in the environment variable that {self.key} names, or set {self.key}",
            402: "wants to be paid: see to the account behind the key",
            404: f"knows no such model or address: mend {self.model} or {self.address}",
            405: f"does not take requests at this address: mend {self.address}",
            410: f"no longer has this model or address: mend {self.model} or {self.address}",
        }.get(status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The server does not take this request. `forbidden`: it is likely to take no other one either."""

    reason: str
    forbidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A try that may succeed when it is repeated; `wait_s` is the wait in seconds that the server asks for.

    `gone`: no server was reached, which is no fault of this request.
    """

    reason: str
    wait_s: float | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Useless:
    """The server would take no request as it is asked now."""

    reason: str


def read_http(
    status: int, headers: Mapping[str, str], text: str, key: str | None, names: SettingNames
) -> dict[str, Any] | Refusal | Trouble | Useless:
    """Return the JSON object of an answer, or what it comes to. The key is blanked out of whatever the server says."""
    text = blank(text, key)  # before anything is cut short
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    reason = blank(f"HTTP {status}: {complaint_of(content, text)}", key)
    if status in _AGAIN or status >= 500:
        return Trouble(reason=reason, wait_s=retry_after(headers.get("Retry-After")))
    if status in _REDIRECTS:
        return Useless(reason=_redirect(status, blank(headers.get("Location") or "", key), names))
    if mend := names.mend(status):
        return Useless(reason=f"{mend} ({reason})")
    if status != 200:
        return Refusal(reason=reason, forbidden=status == 403)
    if not isinstance(content, dict):
        return Trouble(reason=f"the answer is not a JSON object: {cut(text)}")
    if content.get("error"):  # some gateways report what failed behind them with status 200
        return Trouble(reason=reason)
    return content


def _redirect(status: int, location: str, names: SettingNames) -> str:
    target = cut(location.removesuffix(names.path))
    if not target:
        return f"redirects elsewhere without an address (HTTP {status}): set {names.address} to where the server is"
    return f"redirects to {target} (HTTP {status}), which is not followed: set {names.address} to that address"


def complaint_of(content: Any, text: str) -> str:
    """Return what the server says is wrong: OpenAI's form, those of other servers, or the body as it came."""
    complaint = content
    for name in ("error", "message", "detail"):
        if isinstance(complaint, dict) and complaint.get(name):
            complaint = complaint[name]
    return cut(complaint if isinstance(complaint, str) else text or "no reason given")


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, at most `MOST_WAIT_S`, or None where it asks for none.

    The header is a number of seconds or a date (RFC 9110, section 10.2.3).
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        return _seconds_until(header)
    return min(seconds, MOST_WAIT_S) if math.isfinite(seconds) and seconds >= 0 else None


def _seconds_until(header: str) -> float | None:
    try:
        date = parsedate_to_datetime(header)
        aware = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        seconds = (aware - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):  # what the parser of dates raises for what is none
        return None
    return min(max(0.0, seconds), MOST_WAIT_S)


def blank(text: str, key: str | None) -> str:
    return text.replace(key, "[key]") if key and len(key) >= SECRET_CHARACTERS else text


def cut(text: str) -> str:
    text = " ".join(storable(text).split())
    return text if len(text) <= MESSAGE_CHARACTERS else text[:MESSAGE_CHARACTERS] + " ..."


def storable(text: str) -> str:
    """Return a text that can be written down: what UTF-8 cannot hold becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
