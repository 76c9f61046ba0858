"""How a stage's progress is shown: a live bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from inward.runs.place import Place

EVERY = 15.0
"""Seconds between two plain lines about the same stage."""


def make_reporter() -> BarReporter | PlainReporter:
    return BarReporter() if sys.stderr.isatty() else PlainReporter(sys.stderr)


def rate_text(items: int, tokens: int, seconds: float, total: int, unit: str) -> str:
    """Return `37/64 prompts, 1.9 prompts/s, 412 tokens/s, 0:14 left`."""
    text = f"{items}/{total} {unit}"
    if seconds <= 0 or not items:
        return text
    text += f", {items / seconds:.3g} {unit}/s"
    if tokens:
        text += f", {tokens / seconds:,.0f} tokens/s"
    if items < total:
        text += f", {clock((total - items) * seconds / items)} left"
    return text


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainReporter:
    """Lines of text, for logs and pipes."""

    def __init__(self, stream: TextIO, every: float = EVERY) -> None:
        self._stream, self._every = stream, every
        self._label, self._total, self._unit = "", 0, ""
        self._items = self._tokens = 0
        self._began = self._shown = 0.0

    def begin(self, place: Place, total: int, unit: str) -> None:
        self._label, self._total, self._unit = str(place), total, unit
        self._items = self._tokens = 0
        self._began = self._shown = time.monotonic()

    def advance(self, items: int, tokens: int) -> None:
        self._items += items
        self._tokens += tokens
        if time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            self._line()

    def end(self, note: str = "") -> None:
        self._line(f"done in {clock(time.monotonic() - self._began)}" + (f", {note}" if note else ""))

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was found, whatever stage was cut short."""

    def _line(self, note: str = "") -> None:
        seconds = time.monotonic() - self._began
        text = f"{self._label}: {rate_text(self._items, self._tokens, seconds, self._total, self._unit)}"
        self.say(f"{text}, {note}" if note else text)


class BarReporter:
    """A live bar with rates and time left; finished stages stay above it as lines."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bar: Any = None
        self._task: Any = None
        self._tokens = 0
        self._items = 0
        self._began = 0.0
        self._label, self._total, self._unit = "", 0, ""

    def begin(self, place: Place, total: int, unit: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._label, self._total, self._unit = str(place), total, unit
        self._items = self._tokens = 0
        self._began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(self._label, total=total, rate="")

    def advance(self, items: int, tokens: int) -> None:
        self._items += items
        self._tokens += tokens
        self._bar.update(self._task, completed=self._items, rate=self._rate())

    def end(self, note: str = "") -> None:
        self._bar.stop()
        took = clock(time.monotonic() - self._began)
        self.say(f"{self._label}: {self._rate()}, done in {took}" + (f", {note}" if note else ""))

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        """Take down a bar that an error or Ctrl-C left standing: it hides the cursor."""
        if self._bar is not None:
            self._bar.stop()

    def _rate(self) -> str:
        return rate_text(self._items, self._tokens, time.monotonic() - self._began, self._total, self._unit)
