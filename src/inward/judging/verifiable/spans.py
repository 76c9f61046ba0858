r"""Where a response says what its answer is: GSM8K's marker, `\boxed{}`, "the answer is"."""

from __future__ import annotations

import re

MAX_SENTENCE = 500
MAX_ANNOUNCEMENTS = 20
"""Characters of a sentence, and how many markers from the end, are read: time must not grow with a hostile text."""

_MARKER = re.compile(r"(?<!#)####(?!#)[ \t]*")
_HEADING = re.compile(r"\d{1,9}[.):]\s+[A-Za-z]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{")
_ANNOUNCED = re.compile(
    r"\banswer(?:\b[^.\n\d]{0,60}?\b(?:is|equals)\b(?!\s+not\b)\s?:?|\s?[:=]|\s?(?=\n))",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|\n\n")
_WRAPPED = re.compile(r"\\(?:text[a-z]{0,9}|math(?:rm|bf|it|sf)|mbox|operatorname|emph|boldsymbol)\s?\{([^{}]{0,500})\}")


def marked(response: str) -> list[str]:
    """Return what follows each of GSM8K's markers `####` on its line, the last first; numbered headings do not count."""
    positions = [match.end() for match in _MARKER.finditer(response)][-MAX_ANNOUNCEMENTS:]
    lines = [response[position : position + MAX_SENTENCE].partition("\n")[0].strip() for position in reversed(positions)]
    return [line for line in lines if line and not _HEADING.match(line)]


def boxed(response: str) -> str | None:
    r"""Return what the last `\boxed{...}` holds, inner braces included; None where there is none, or it is empty."""
    last = None
    for match in _BOX.finditer(response):
        last = match
    if last is None:
        return None
    depth = 1
    for position in range(last.end(), len(response)):
        depth += {"{": 1, "}": -1}.get(response[position], 0)
        if depth == 0:
            return response[last.end() : position].strip() or None
    return response[last.end() :].strip() or None


def announced(response: str) -> list[str]:
    """Return the sentences that follow "the answer is", "answer:" and the like, the last first."""
    text = response.replace("**", "")
    positions = [match.end() for match in _ANNOUNCED.finditer(text)][-MAX_ANNOUNCEMENTS:]
    tails = [text[position : position + MAX_SENTENCE].lstrip() for position in reversed(positions)]
    return [sentence for tail in tails if (sentence := _SENTENCE_END.split(tail, maxsplit=1)[0].strip())]


def without_markup(text: str) -> str:
    r"""Return a text without bold type, `\text{...}` and the marks around mathematics."""
    text = _WRAPPED.sub(r"\1", text.replace("**", "").replace("`", "").replace("$", ""))
    return re.sub(r"\\[()\[\],;: ]", " ", text)
