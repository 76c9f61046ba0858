r"""Answers that are mathematical expressions (`2\sqrt{3}`, `x^2+1`, `[0, 1)`), read by the `math-verify` package.

The package parses LaTeX into SymPy (huggingface/Math-Verify); whether two expressions are equal is decided by `equality`. The
package's own comparison is not used: it simplifies and solves, which takes minutes on short hostile expressions, and it bounds
that by SIGALRM, which works in the main thread alone and makes a score depend on the machine. For the same reason only what is
bounded is parsed: the parser takes exponential time in the depth of brackets. An expression of a response that is longer or
deeper or has larger exponents than `_is_bounded` allows, or that holds an unknown command, is not compared and so is not right.
Plain text is never evaluated as Python: only LaTeX is parsed.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from typing import Any

from inward.errors import MissingExtraError
from inward.judging.verifiable.equality import equal
from inward.judging.verifiable.spans import announced, boxed, marked

MAX_CHARACTERS = 120
MAX_DEPTH = 4
MAX_BRACKETS = 12

_UNKNOWN_COMMAND = re.compile(
    r"\\(?!(?:[dtc]?frac|sqrt|pi|infty|cdot|times|div|pm|left|right|text|textbf|mathrm|mathbf|circ|degree|cup|cap|in|leq?|geq?|lt|gt"
    r"|neq?|quad|sin|cos|tan|ln|log|exp|theta|alpha|beta|gamma|lambda|mu|phi)(?![A-Za-z]))[A-Za-z]"
)
_COMMAND = re.compile(r"\\[A-Za-z]")
_EXPONENT = re.compile(
    r"\^(?:\{-?(?:\d{1,2}|[a-z]|\d?[a-z][+-]\d|\d{1,2}/\d{1,2}|\\[dt]?frac\{?\d\}?\{?\d\}?|\\circ)\}|-?\d|[a-z]|\\circ)(?!\^)"
)
_SPACE = re.compile(r"\\[,;:! ]|\s|\\(?:left|right|displaystyle)(?![A-Za-z])|[$~]")
_ALGEBRA = re.compile(r"(?!.*[A-Za-z]{2})(?=.*[a-z])(?=.*[-+*/^=<>])[-+*/^=<>().\s\da-z]+")
_TUPLE = re.compile(r"[(\[].{1,80},.{1,80}[)\]]")
_MATHS = re.compile(r"\$\$?([^$]{1,200})\$|\\\((.{1,200}?)\\\)|\\\[(.{1,200}?)\\\]", re.DOTALL)


def looks_like_expression(reference: str) -> bool:
    r"""Say whether a reference answer that is no number is an expression: it holds LaTeX, a power, a tuple or algebra."""
    return bool(_COMMAND.search(reference) or "^" in reference or _TUPLE.fullmatch(reference) or _ALGEBRA.fullmatch(reference))


def final_expression(response: str) -> str | None:
    r"""Return the expression that a response gives as its answer.

    In this order: after GSM8K's marker, in the last `\boxed{}`, after the last "answer is" or "answer:", the last formula
    between dollar signs or the like, and the response itself where it is short.
    """
    spans = marked(response)[:1] or [box for box in [boxed(response)] if box is not None] or announced(response)[:1]
    formulas = _MATHS.findall(spans[0] if spans else response)
    if formulas:
        return "".join(formulas[-1]).strip()
    text = spans[0] if spans else response.strip()
    return text.rstrip(". ") if len(text) <= MAX_CHARACTERS else None


def same_expression(reference: str, expression: str) -> bool:
    """Say whether two expressions are equal. MissingExtraError without the `verifiable` extra."""
    if _squeezed(reference) == _squeezed(expression):
        return True
    if not _is_bounded(_squeezed(expression)):
        return False
    return any(equal(first, second) for second in _parse(expression) for first in _parse(reference))


def require_packages() -> None:
    """Raise MissingExtraError unless expressions can be compared."""
    _library()


def _squeezed(expression: str) -> str:
    """Return an expression without spaces, dollar signs and what only sets its size."""
    return re.sub(r"\\[dtc]frac", r"\\frac", _SPACE.sub("", expression)).rstrip(".")


def _is_bounded(expression: str) -> bool:
    if len(expression) > MAX_CHARACTERS or re.search(r"\d{13}|[!_]", expression):
        return False
    if _UNKNOWN_COMMAND.search(expression):
        return False
    if expression.count("^") != len(_EXPONENT.findall(expression)) or expression.count("^") > 6:
        return False
    depth = brackets = 0
    for character in expression:
        if character in "([{":
            depth, brackets = depth + 1, brackets + 1
        elif character in ")]}":
            depth -= 1
        if depth > MAX_DEPTH or brackets > MAX_BRACKETS:
            return False
    return True


def _parse(expression: str) -> list[Any]:
    library = _library()
    formula = "\\boxed{" + expression.strip().strip("$") + "}"
    parsed: list[Any] = library.parse(
        formula, [library.LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return parsed


@functools.cache
def _library() -> Any:
    try:
        library = importlib.import_module("math_verify")
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "verifiable") from error
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).disabled = True  # they log what they could not read, and that no time limit is set
    return library
