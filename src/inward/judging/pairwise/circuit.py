"""When to stop asking an endpoint: what went wrong in a row, over all requests of all threads.

Two things are counted. Requests that failed with all their retries say that the server is broken: `limit` of them in a row
open the circuit. Refused requests (HTTP 400 and the like) may be at fault themselves, as prompts that are too long for the
model are, and many of them may come in a row: after `limit` of them a short request of the same form is sent. If that is
refused too, the server takes no request, and the circuit opens; if it is answered, twice as many refusals may come before the
next one.
"""

from __future__ import annotations

from dataclasses import dataclass

from inward.errors import JudgeError


@dataclass(slots=True, kw_only=True)
class Circuit:
    """The state that all requests share. Only the event loop's thread touches it."""

    limit: int
    failures: int = 0
    refusals: int = 0
    passed: int = 0
    openings: int = 0
    error: JudgeError | None = None

    def answered(self) -> None:
        """Note an ordinary answer: the server is well."""
        self.failures = self.refusals = self.passed = 0

    def failed(self) -> bool:
        """Note a request that failed with all its retries, and say whether that opens the circuit."""
        self.failures += 1
        return self.failures >= self.limit

    def refused(self) -> None:
        self.refusals += 1

    def needs_probe(self, *, forbidden: bool) -> bool:
        """Say whether a short request should find out if the server takes any. One that is `forbidden` makes it urgent."""
        return self.refusals >= (1 if forbidden else self.limit) << self.passed

    def probe_passed(self) -> None:
        self.passed += 1

    def open(self, error: JudgeError) -> JudgeError:
        """Note that nothing more is to be asked in the calls that are under way, and return the error to raise."""
        self.openings += 1
        self.error = error
        return error

    def check(self, openings: int) -> None:
        """Raise the error with which the circuit opened after a call had begun, at which there were so many `openings`."""
        if self.openings != openings:
            assert self.error is not None, "it opens with an error"
            raise JudgeError(str(self.error))
