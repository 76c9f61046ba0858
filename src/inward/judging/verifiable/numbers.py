r"""Numbers as people and models write them, read as exact fractions.

What is read: signs, thousands separators (`1,234`, `1{,}234`, `12\,000`), decimals, fractions (`3/4`, `\frac34`, `¾`), mixed
numbers (`3 1/2`, `3\frac{1}{2}`), powers (`10^{5}`), scientific notation (`1.5e6`, `1.5 \times 10^6`), and what only dresses a
number up: a currency, a percent sign, a unit, bold type, `\text{...}`. So 50% is read as 50. A number that is a part of another
expression (`2\sqrt{3}`, `5x`, `2\pi`) is not read.

All patterns are bounded, so that the time grows linearly with a text, hostile or not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction

MAX_CHARACTERS = 100
"""A longer number is not read."""
MAX_POWER_DIGITS = 1000
OPAQUE = "\x00"
"""Stands for a part of an expression that is no plain number, so that its neighbours are not read as one."""

_NUMBER = re.compile(
    r"""(?=[-+$€£¥.\d])(?<![\w./\x00])                               # not inside a word, another number or an expression
    (?P<sign>[-+]{0,2}[$€£¥]?-?)
    (?P<digits>(?:\d{1,3}(?:,\d{3}){1,30}+(?!\d)|\d++)(?:\.\d++)?+|\.\d++)
    (?:\ (?P<top>\d{1,9}+)\s?/\s?(?P<bottom>\d{1,9}+)(?![\d/])         # the fraction of a mixed number
      |\s?/\s?(?P<below>\d++(?:\.\d++)?+)(?![\d/])
      |\s?[*x]\s?10\^(?P<ten>[-+]?\d{1,3}+)
      |[eE](?P<e>[-+]?\d{1,3}+)(?!\w)
      |\^(?P<power>[-+]?\d{1,3}+))?
    (?!\d|\^|\s?\x00|\s?[*x]\s?10\^|(?![mgshlLkKMWVAJNCFBTG]\b)[A-Za-z]\b)  # a lone letter after it is a unit or a variable
    """,
    re.VERBOSE,
)
_TYPOGRAPHY = str.maketrans({"\u2212": "-", "\u2013": "-", "×": "*", "·": "*", "⋅": "*", "\u2044": "/", "≈": "=", "`": None})
_VULGAR = re.compile(r"(\d?)([\u00bc-\u00be\u2150-\u215e])")
_SUPERSCRIPT = re.compile(r"[\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;: ]|\\thinspace|[~\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_ARGUMENT = r"(?:\{\s*([-+]?[\d.,]{1,60})\s*\}|(\d))"
_FRACTION = re.compile(rf"(\d\s?)?\\[dtc]?frac\s?{_ARGUMENT}\s?{_ARGUMENT}")
_TEXT = re.compile(
    r"\\(?:text[a-z]{0,9}|math(?:rm|bf|it|sf)|mbox|operatorname|emph|boldsymbol)\s?\{([^{}]{0,200})\}(\s?\^\s?\{?-?\d{1,3}\}?)?"
)
_DEGREES = re.compile(r"\^\s?\{?\s?\\(?:circ|degree)\s?\}?|\\degree")
_EXPRESSION = re.compile(
    r"\\sqrt\s?(?:\[[^\]]{0,20}\])?\s?(?:\{[^{}]{0,200}\}|\w)"
    r"|\\[dtc]?frac\s?\{[^{}]{0,200}\}\s?\{[^{}]{0,200}\}"
    r"|\\(?:sqrt|[dtc]?frac|[dt]?binom|pi|infty|theta|phi|alpha|beta|gamma|lambda|mu|ln|log|sin|cos|tan|exp)(?![A-Za-z])"
)
_PRODUCT = re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])")
_EXPONENT = re.compile(r"\^\s?\{\s?([-+]?\d{1,3})\s?\}")
_OF_UNIT = re.compile(r"(?<=[A-Za-z])\^-?\w{1,9}|_\{[^{}]{0,60}\}|(?<=[A-Za-z])_\w")
_COMMAND = re.compile(r"\\(?:[A-Za-z]{1,40}|.)?")
_SPACED_THOUSANDS = re.compile(r"[-+$€£¥]{0,3}\d{1,3}(?: \d{3}){1,30}(?:\.\d+)?")
_LABEL = re.compile(  # "x =", "f(2) =", "Total:", then "9 * 2 =", but not the left side of an equation such as "2x + 3y ="
    r"(?:[A-Za-z]{1,20}\s?\([^()=]{0,20}\)\s?=|[^\d+*/^<>()=:\x00-]{0,60}(?:=|(?<=[A-Za-z])\s?:))?(?:[^A-Za-z=\x00]{1,100}=){0,9}"
)
_UNIT = re.compile(r"[^\d\x00\\^*+=<>(,;-]*")


def first_number(text: str) -> Fraction | None:
    """Return the first number that a text holds."""
    return _first(_NUMBER.finditer(_plain(text)))


def last_number(text: str) -> Fraction | None:
    """Return the last number that a text holds."""
    return _first(reversed(list(_NUMBER.finditer(_plain(text)))))


def leading_number(text: str) -> Fraction | None:
    """Return the number that a text begins with."""
    match = _NUMBER.match(_plain(text).lstrip())
    return None if match is None else _value(match)


def sole_number(text: str, *, unit: bool = False) -> Fraction | None:
    """Return the number that a text as a whole is; where `unit` is true, words may follow it ("18 apples")."""
    plain = _LABEL.sub("", _plain(text), count=1).strip().removesuffix("$").rstrip(". ")
    if plain.startswith("(") and plain.endswith(")"):
        plain = plain[1:-1].strip()
    plain = re.sub(r"^([-+])\s", r"\1", plain)
    if _SPACED_THOUSANDS.fullmatch(plain):
        plain = plain.replace(" ", "")
    match = _NUMBER.match(plain)
    if match is None:
        return None
    rest = plain[match.end() :].strip()
    return _value(match) if rest in ("", "%") or (unit and _UNIT.fullmatch(rest)) else None


def _first(matches: Iterable[re.Match[str]]) -> Fraction | None:
    return next((value for match in matches if (value := _value(match)) is not None), None)


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > MAX_CHARACTERS:
        return None
    value = Fraction(match["digits"].replace(",", ""))
    if match["top"] is not None:
        if int(match["bottom"]) == 0:
            return None
        value += Fraction(int(match["top"]), int(match["bottom"]))
    elif match["below"] is not None:
        below = Fraction(match["below"])
        if below == 0:
            return None
        value /= below
    elif match["power"] is not None:
        power = int(match["power"])
        if (value == 0 and power < 0) or len(match["digits"]) * abs(power) > MAX_POWER_DIGITS:
            return None
        value **= power
    else:
        value *= Fraction(10) ** int(match["ten"] or match["e"] or 0)
    return -value if match["sign"].count("-") % 2 else value


def _plain(text: str) -> str:
    """Return the text with its LaTeX and its typography in the plain form that `_NUMBER` reads."""
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda match: "^" + _compatible(match[0]), text.translate(_TYPOGRAPHY))
        text = _VULGAR.sub(lambda match: f"{match[1]} {_compatible(match[2])}" if match[1] else _compatible(match[2]), text)
    text = text.replace("**", "").replace("`", "")
    if "\\" in text or "{" in text or not text.isascii():
        text = _THOUSANDS.sub("", text.replace("\\!", "").replace("{,}", ","))
    if "\\" in text:
        text = _without_latex(text)
    if "^" in text or "_" in text:
        text = _OF_UNIT.sub("", _EXPONENT.sub(r"^\1", text))
    return text.replace("{", " ").replace("}", " ")


def _without_latex(text: str) -> str:
    text = text.replace("\\$", "$").replace("\\%", "%")
    text = _TEXT.sub(lambda match: f" {match[1]} " if any(map(str.isdigit, match[1])) else " ", text)
    text = _DEGREES.sub("", text)
    text = _FRACTION.sub(_plain_fraction, text)
    text = _PRODUCT.sub("*", _EXPRESSION.sub(OPAQUE, text))
    return _COMMAND.sub(" ", text)


def _plain_fraction(match: re.Match[str]) -> str:
    integer, above, below = match[1], match[2] or match[3], (match[4] or match[5]).replace(",", "")
    return f"{integer.strip()} {above}/{below}" if integer else f"{above}/{below}"


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/").replace("\u2212", "-")
