"""Exact answers: the final number of a response, or a text it must hold, compared with the reference answers.

Numbers are compared as exact fractions after dropping what only dresses them up (GSM8K: Cobbe et al. 2021, arXiv 2110.14168).
Texts are compared as SQuAD does (Rajpurkar et al. 2016, arXiv 1606.05250): lower case, no punctuation, no articles.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

_NUMBER = re.compile(
    r"""(?<![\w./])                                      # not inside a word or another number
    (?P<sign>[-+\u2212\u2013]?)[$€£]?(?P<minus>[-\u2212]?)
    (?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<decimals>\.\d+)?
    (?:\s?/\s?(?P<below>\d+)(?![\d/]))?""",
    re.VERBOSE,
)
_FRACTION = re.compile(r"\\[dt]?frac\{(\d{1,60})\}\{(\d{1,60})\}")
_ANNOUNCED = re.compile(r"\banswer(?:\b[^.\n\d]{0,60}?\b(?:is|equals)\b\s?:?|\s?[:=])", re.IGNORECASE)
SENTENCE = 500
DIGITS = 100
ANNOUNCEMENTS = 20
"""Characters of a sentence and of a number, and how many "answer is", are read: time must not grow with a hostile text."""
_TEX = str.maketrans({"`": None, "{": " ", "}": " "})
_BARE = str.maketrans("", "", string.punctuation + "“”‘’–—−")


@dataclass(frozen=True, slots=True)
class Answered:
    """What was taken for the answer (None where there was none), and whether it is one of the references."""

    found: str | None
    correct: bool


def compare(response: str, answers: Sequence[str]) -> Answered:
    """Compare a response with reference answers, of which any will do.

    Where every reference is a number, the response's final number counts; else a reference must stand in the response.
    """
    numbers = [reference_number(answer) for answer in answers]
    if numbers and all(number is not None for number in numbers):
        found = final_number(response)
        return Answered(None if found is None else str(found), found is not None and found in numbers)
    text = f" {normalise(response)} "
    for answer in answers:
        wanted = normalise(answer)
        if (wanted and f" {wanted} " in text) or answer.strip().lower() == response.strip().lower():
            return Answered(answer, True)
    return Answered(None, False)


def normalise(text: str) -> str:
    """Return the text in SQuAD's form: lower case, without punctuation and articles, single spaces."""
    words = text.lower().translate(_BARE).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def reference_number(answer: str) -> Fraction | None:
    """Return the number that a reference answer is: all of it, or what follows `####` in a worked solution."""
    text = _prepared(answer.rpartition("####")[2]).strip().rstrip(".")
    match = _NUMBER.match(text)
    rest = text[match.end() :].strip() if match else text
    return _value(match) if match and rest in ("", "%") else None


def final_number(response: str) -> Fraction | None:
    r"""Return the number a response gives as its answer.

    In this order: after the last `####`, in the last `\boxed{}`, after the last "answer is" or "answer:", the last of all.
    """
    for part in (_after_hashes(response), _boxed(response)):
        numbers = _numbers(part)
        if numbers:
            return numbers[-1]
    announced = _announced(response)
    if announced is not None:
        return announced
    numbers = _numbers(response)
    return numbers[-1] if numbers else None


def _after_hashes(text: str) -> str:
    _, found, tail = text.rpartition("####")
    return tail.strip().split("\n", 1)[0] if found else ""


def _boxed(text: str) -> str:
    r"""Return what the last `\boxed{...}` holds, inner braces included."""
    _, found, tail = text.rpartition("\\boxed{")
    if not found:
        return ""
    depth = 1
    for position, character in enumerate(tail):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return tail[:position]
    return tail


def _announced(text: str) -> Fraction | None:
    """Return the number in the last sentence that says what the answer is: what follows its last "=", else its first."""
    text = text.replace("**", "")
    for match in reversed(list(_ANNOUNCED.finditer(text))[-ANNOUNCEMENTS:]):
        tail = text[match.end() : match.end() + SENTENCE].lstrip()
        sentence = re.split(r"\.(?:\s|$)|\n\n", tail, maxsplit=1)[0]
        numbers = _numbers(sentence.rpartition("=")[2]) or _numbers(sentence)
        if numbers:
            return numbers[0]
    return None


def _numbers(text: str) -> list[Fraction]:
    values = (_value(match) for match in _NUMBER.finditer(_prepared(text)))
    return [value for value in values if value is not None]


def _prepared(text: str) -> str:
    return _FRACTION.sub(r" \1/\2 ", text.replace("\\$", "$").replace("\\%", "%").replace("**", "")).translate(_TEX)


def _value(match: re.Match[str]) -> Fraction | None:
    if (match["whole"] is None and match["decimals"] is None) or len(match[0]) > DIGITS:
        return None
    value = Fraction((match["whole"] or "0").replace(",", "") + (match["decimals"] or ""))
    if match["below"] is not None:
        if int(match["below"]) == 0:
            return None
        value /= int(match["below"])
    negative = match["sign"] in ("-", "\u2212", "\u2013") or bool(match["minus"])
    return -value if negative else value
