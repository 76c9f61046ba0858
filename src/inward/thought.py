"""Thought formats: how an instruction is rendered, how an output splits into thought and response, how a stream is filtered.

One `ThoughtFormat` drives all three, so that training, evaluation and serving can never disagree on what is hidden.
Splitting is total: every text gives a response or a named format error (METHOD.md steps 2 and 5). Matching is plain and
case-sensitive. What stands before the thought marker counts as thought: when in doubt, hide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from inward.errors import UsageError

Turn = Literal["user", "system"]
FormatError = Literal[
    "no_thought_marker",
    "no_response_marker",
    "cut_off_in_thought",
    "repeated_marker",
    "empty_response",
    "cut_off_response",
]
CUT_OFF_RESPONSE: Final = "cut_off_response"
SLOT = "{prompt}"


@dataclass(frozen=True, slots=True)
class ThoughtFormat:
    """A named thought prompt and its markers.

    `template` holds `{prompt}` once where `turn` is "user"; in the "system" turn it is the system message, without the slot.
    An empty `response_marker` means that there is no thought at all (the direct arm); an empty `thought_marker` that the
    thought starts at once.
    """

    name: str
    template: str = SLOT
    thought_marker: str = ""
    response_marker: str = ""
    turn: Turn = "user"

    def __post_init__(self) -> None:
        if self.turn == "user" and self.template.count(SLOT) != 1:
            raise UsageError(f"thought format {self.name!r}: the template must contain {SLOT} exactly once")
        if self.turn == "system" and SLOT in self.template:
            raise UsageError(f"thought format {self.name!r}: a system-turn template must not contain {SLOT}")
        if self.thought_marker and not self.response_marker:
            raise UsageError(f"thought format {self.name!r}: thought_marker is set but response_marker is not")
        for first, second in ((self.thought_marker, self.response_marker), (self.response_marker, self.thought_marker)):
            if first and first in second:
                raise UsageError(f"thought format {self.name!r}: marker {first!r} is part of marker {second!r}")
        if any(marker != marker.strip() for marker in self.markers):
            raise UsageError(f"thought format {self.name!r}: a marker must not begin or end with white space")

    @property
    def thinks(self) -> bool:
        return bool(self.response_marker)

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(marker for marker in (self.thought_marker, self.response_marker) if marker)


@dataclass(frozen=True, slots=True)
class Split:
    """The two parts of an output. `response` is None if and only if `error` is set."""

    thought: str | None
    response: str | None
    error: FormatError | None = None


def messages(fmt: ThoughtFormat, prompt: str) -> list[dict[str, str]]:
    """Return the chat turns p + x_i for one instruction. The prompt's own braces and markers stay as they are."""
    if fmt.turn == "system":
        return [{"role": "system", "content": fmt.template}, {"role": "user", "content": prompt}]
    before, _, after = fmt.template.partition(SLOT)
    return [{"role": "user", "content": before + prompt + after}]


def join(fmt: ThoughtFormat, thought: str, response: str) -> str:
    """Return the output that `split` takes apart again (for texts that hold no marker and no outer white space)."""
    if not fmt.thinks:
        return response
    opening = f"{fmt.thought_marker}\n" if fmt.thought_marker else ""
    return f"{opening}{thought}\n\n{fmt.response_marker}\n{response}"


def split(fmt: ThoughtFormat, text: str, *, finished: bool = True) -> Split:
    """Split an output into thought and response, or name what is wrong with it.

    `finished` is False where generation was cut off by its length limit; a cut inside the thought is then told apart from
    a marker that was never written. A cut inside the response still leaves a response, which is what a user would see; whether
    it is one to learn from is for `without_cut_off`.
    """
    if not fmt.thinks:
        response = text.strip()
        return Split(None, response) if response else Split(None, None, "empty_response")
    head, marker, tail = text.partition(fmt.response_marker)
    thought = _after_marker(fmt, head)
    if not marker:
        if not finished and thought is not None:
            return Split(thought, None, "cut_off_in_thought")
        return Split(thought if thought is not None else text.strip(), None, _missing(fmt, head))
    if thought is None:
        return Split(head.strip(), None, "no_thought_marker")
    if any(marker in tail for marker in fmt.markers) or _repeats(fmt, head):
        return Split(thought, None, "repeated_marker")
    response = tail.strip()
    return Split(thought, response) if response else Split(thought, None, "empty_response")


def without_cut_off(parts: Split, *, finished: bool) -> Split:
    """Return the split with a response that the length limit cut off turned into the format error `cut_off_response`."""
    if finished or parts.response is None:
        return parts
    return Split(parts.thought, None, CUT_OFF_RESPONSE)


def _after_marker(fmt: ThoughtFormat, head: str) -> str | None:
    if not fmt.thought_marker:
        return head.strip()
    before, marker, after = head.partition(fmt.thought_marker)
    if not marker:
        return None
    return "\n".join(part for part in (before.strip(), after.strip()) if part)


def _missing(fmt: ThoughtFormat, head: str) -> FormatError:
    return "no_thought_marker" if fmt.thought_marker and fmt.thought_marker not in head else "no_response_marker"


def _repeats(fmt: ThoughtFormat, head: str) -> bool:
    return bool(fmt.thought_marker) and head.count(fmt.thought_marker) > 1


class StreamFilter:
    """Let only the response of a stream through, whatever the chunks.

    Feed chunks; each call returns what may be shown now. For any chunking of a text whose split has a response, the joined
    result equals that response up to outer white space. Text that could still become a marker is held back. When a marker
    comes a second time, nothing more is let through: what follows may be a thought.
    """

    def __init__(self, fmt: ThoughtFormat) -> None:
        self._format = fmt
        self._held = ""
        self._state: Literal["thought", "response", "closed"] = "thought" if fmt.thinks else "response"
        self._started = False

    @property
    def closed(self) -> bool:
        """True once a marker came twice; the stream shows nothing from there on."""
        return self._state == "closed"

    @property
    def responding(self) -> bool:
        return self._state == "response"

    def feed(self, chunk: str) -> str:
        if self._state == "closed":
            return ""
        self._held += chunk
        if self._state == "thought" and not self._enter_response():
            return ""
        return self._emit()

    def finish(self) -> str:
        """Return what was held back, once the stream has ended. A stream that never reached its response gives nothing."""
        if self._state != "response":
            return ""
        held, self._held = self._held, ""
        return self._shown(held).rstrip()

    def _enter_response(self) -> bool:
        head, marker, tail = self._held.partition(self._format.response_marker)
        if not marker:
            return False
        if _after_marker(self._format, head) is None or _repeats(self._format, head):
            self._state, self._held = "closed", ""
            return False
        self._state, self._held = "response", tail
        return True

    def _emit(self) -> str:
        positions = [self._held.find(m) for m in self._format.markers if m in self._held]
        if positions:
            shown, self._held, self._state = self._held[: min(positions)], "", "closed"
            return self._shown(shown).rstrip()
        keep = max((_overlap(self._held, m) for m in self._format.markers), default=0)
        body = self._held[: len(self._held) - keep]
        trimmed = body.rstrip()
        self._held = self._held[len(trimmed) :]
        return self._shown(trimmed)

    def _shown(self, text: str) -> str:
        if not self._started:
            text = text.lstrip()
            self._started = bool(text)
        return text


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


GENERIC = ThoughtFormat(
    name="generic",
    template=(
        "Answer the user query below comprehensively and in detail. You may write down your thought process first, as long "
        'as you like; the user will not see it. Put your thoughts after the line "Here is my thought process:" and your '
        'final answer after the line "Here is my response:".\n\nUser query: {prompt}'
    ),
    thought_marker="Here is my thought process:",
    response_marker="Here is my response:",
)
SPECIFIC = ThoughtFormat(
    name="specific",
    template=(
        "Answer the user query below. Begin with your internal thoughts, which the user will not see: they must contain a "
        "draft of the response and an evaluation of that draft. Then write <R> and, after it, the final response, complete "
        "in itself.\n\nUser query: {prompt}"
    ),
    response_marker="<R>",
)
DIRECT = ThoughtFormat(name="direct")
BUILT_IN = {fmt.name: fmt for fmt in (GENERIC, SPECIFIC, DIRECT)}
