"""Checks a program can make of a response: the IFEval checkers, and IFBench's, of the `if-verifiable` package.

IFEval: Zhou et al. 2023, arXiv 2311.07911. IFBench: Pyatkin et al. 2025, arXiv 2507.02833. This module adds to a bare call of
the checkers:

- Responses are hostile: a model that is trained on the score learns whatever raises it. So a response never gains by making a
  check impossible. Where a checker raises an error on a response, or the response is of a shape on which the checkers' patterns
  take quadratic time, the constraint counts as failed and `Check.reason` says why. Nothing a checker raises escapes.
- A constraint is dropped for all responses to a prompt alike if the reason lies in the constraint or in this machine: there is
  no checker of its name, an argument is missing or unusable, or NLTK's data is absent. Which of the two it is shows on trial:
  the checker is also run on a plain text (`PLAIN_TEXT`), and no response is to blame for what it cannot check there. Two errors
  are never the response's: absent data, and a keyword that is no regular expression, which a checker may not read before the
  keywords in front of it are met.
- A checker that lacks an argument, or cannot use one, draws one at random: the same response would then pass or fail by chance.
- Language detection is seeded, and nothing is ever downloaded. Where NLTK's `punkt_tab` data is absent, sentences cannot be
  counted; words in capitals are counted without it, with the same result.
"""

from __future__ import annotations

import csv
import functools
import importlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from inward.errors import MissingExtraError
from inward.records import Constraint

MAX_CHARACTERS = 50_000
MAX_REPEATS = 1_000
"""How many white-space characters may follow each other, and how many brackets, quotes or asterisks a line may hold."""
PLAIN_TEXT = "The morning was calm and clear. A small boat left the harbour, and two people waved from the shore."
CHECKER_ERRORS = (
    re.error,  # a keyword that is not a regular expression, which the checkers take it for
    csv.Error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,  # also NLTK data that is absent
    NotImplementedError,
    RecursionError,  # JSON nested a thousand deep
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one constraint on one response.

    `strict` and `loose` are None if and only if the constraint was dropped for every response; `reason` then says why. Where
    they are False and there is a `reason`, the response made the check impossible.
    """

    strict: bool | None = None
    loose: bool | None = None
    reason: str | None = None

    @property
    def dropped(self) -> bool:
        return self.strict is None


class _UnusableError(Exception):
    """The reason why a constraint cannot be checked on any response."""


def check_responses(constraint: Constraint, responses: Sequence[str], prompt_text: str) -> list[Check]:
    """Check one constraint on all responses to a prompt, in their order.

    Loose means that any of IFEval's variants of the response passes: without its first line, its last, both, and each without
    asterisks. A blank response meets nothing. MissingExtraError without the `verifiable` extra; nothing else is raised.
    """
    try:
        follows = _usable_checker(constraint, prompt_text)
        return [_check(follows, response.strip()) for response in responses]
    except _UnusableError as unusable:
        return [Check(reason=str(unusable)) for _ in responses]


def require_packages() -> None:
    """Raise MissingExtraError unless the checkers can be used."""
    _registry("ifeval")


def _check(follows: Callable[[str], bool], response: str) -> Check:
    """Check a response. Raises `_UnusableError` for an error that lies in the constraint or in this machine."""
    problem = _too_heavy(response)
    if problem is not None:
        return Check(strict=False, loose=False, reason=problem)
    try:
        strict = bool(response) and follows(response)
        loose = strict or any(variant.strip() and follows(variant) for variant in _variants(response))
    except CHECKER_ERRORS as error:
        if isinstance(error, re.error) or _absent_data(error) is not None:
            raise _UnusableError(_reason(error)) from error
        return Check(strict=False, loose=False, reason=_reason(error))
    return Check(strict=strict, loose=loose)


def _usable_checker(constraint: Constraint, prompt_text: str) -> Callable[[str], bool]:
    """Return what says whether a text follows the constraint. Raises `_UnusableError` where that cannot be said of any text."""
    make = _checker_class(constraint.id)
    if make is None:
        raise _UnusableError(f"no checker is called {constraint.id!r}")
    try:
        follows = _follows(constraint.id, _build(make, constraint, prompt_text))
        follows(PLAIN_TEXT)
    except CHECKER_ERRORS as error:
        raise _UnusableError(_reason(error)) from error
    return follows


def _build(make: Callable[[str], Any], constraint: Constraint, prompt_text: str) -> Any:
    """Return the checker with its arguments. Raises `_UnusableError` where it lacks one or cannot use one."""
    arguments = json.loads(constraint.arguments)
    if not isinstance(arguments, dict):
        raise _UnusableError("the arguments are not a JSON object")
    arguments = {name: value for name, value in arguments.items() if value is not None}
    checker = make(constraint.id)
    checker.build_description(**arguments)
    used = checker.get_instruction_args() or {}
    if "prompt" in used:
        arguments["prompt"] = prompt_text
        checker.build_description(**arguments)
        used = checker.get_instruction_args() or {}
    lacking = sorted(set(used) - set(arguments))
    if lacking:
        raise _UnusableError(f"the checker needs {', '.join(lacking)}")
    changed = sorted(name for name, value in used.items() if _plain(value) != _plain(arguments[name]))
    if changed:
        raise _UnusableError(f"the checker cannot use {', '.join(f'{name} = {arguments[name]!r}' for name in changed)}")
    return checker


def _plain(value: object) -> object:
    """Return a value up to what the checkers themselves normalise: case, outer white space, the order of a list."""
    if isinstance(value, str):
        return value.strip().lower()
    if isinstance(value, (list, tuple, set)):
        return sorted({str(_plain(item)) for item in value})
    return value


def _follows(name: str, checker: Any) -> Callable[[str], bool]:
    if name == "change_case:capital_word_frequency":
        return functools.partial(_capital_words_follow, checker.get_instruction_args())
    return lambda text: bool(checker.check_following(text))


def _capital_words_follow(arguments: dict[str, Any], text: str) -> bool:
    """Count words in capitals as the checker does, but without its split into sentences, which needs downloaded data.

    Where sentences end makes no difference to the count: the tokenizer splits at white space, at brackets, quotes, "!", "?",
    ":" either way, and a final period leaves a word as much in capitals as it was. The exceptions are a period directly
    followed by an asterisk or an apostrophe and more text, where a sentence may end inside what else is one token. Where the
    two readings of all such places differ in the result, that is a `ValueError`; a reading in between counts no more words
    than the one and no fewer than the other.
    """
    joined = _enough_capital_words(arguments, text)
    if joined != _enough_capital_words(arguments, re.sub(r"(?<=[A-Z0-9]\.)(?=[*'][^\s])", " ", text)):
        raise ValueError("whether a sentence ends within a word in capitals is not known")
    return joined


def _enough_capital_words(arguments: dict[str, Any], text: str) -> bool:
    from nltk.tokenize import word_tokenize

    count: int = sum(token.isupper() for token in word_tokenize(text, preserve_line=True))
    frequency = int(arguments["capital_frequency"])
    return count < frequency if arguments["capital_relation"] == "less than" else count >= frequency


def _too_heavy(response: str) -> str | None:
    """Say why the checkers' patterns, some of them quadratic, should not be run on this text."""
    if len(response) > MAX_CHARACTERS:
        return f"the response is longer than {MAX_CHARACTERS} characters"
    if re.search(rf"\s{{{MAX_REPEATS}}}", response.replace("*", "")):  # IFEval's variants drop asterisks
        return f"the response holds more than {MAX_REPEATS} white-space characters in a row"
    if sum(max(map(line.count, '[<"*')) ** 2 for line in response.split("\n")) > MAX_REPEATS**2:
        return f"lines of the response hold too many brackets, quotes or asterisks (as many as {MAX_REPEATS} in one line)"
    return None


def _absent_data(error: Exception) -> str | None:
    """Return the name of the NLTK data that an error says is not installed."""
    resource = re.search(r"nltk\.download\('(\w+)'\)", str(error)) if isinstance(error, LookupError) else None
    return resource[1] if resource else None


def _reason(error: Exception) -> str:
    data = _absent_data(error)
    if data is not None:
        return f"NLTK's {data} data is not installed: run python -m nltk.downloader {data}"
    return f"the checker failed: {type(error).__name__}: {str(error)[:200]}"


def _variants(response: str) -> list[str]:
    from if_verifiable.common import get_loose_transformations

    variants: list[str] = get_loose_transformations(response)
    return variants


def _checker_class(name: str) -> Callable[[str], Any] | None:
    return _registry("ifeval").get(name) or _registry("ifbench").get(name)


@functools.cache
def _registry(benchmark: str) -> dict[str, Callable[[str], Any]]:
    """Load a table of checkers and make them fit to live with: seeded, silent, offline."""
    try:
        with _no_downloads():
            module = importlib.import_module(f"if_verifiable.{benchmark}.instructions_registry")
            checkers: Any = importlib.import_module(f"if_verifiable.{benchmark}.instructions")
            langdetect: Any = importlib.import_module("langdetect")
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "verifiable") from error
    langdetect.DetectorFactory.seed = 0  # else the language of a short text is drawn by lot
    quiet = logging.getLogger("inward.judging.verifiable.checkers")
    quiet.disabled = True
    checkers.logging = quiet  # they log whole responses on the root logger
    table: dict[str, Callable[[str], Any]] = module.INSTRUCTION_DICT
    return table


@contextmanager
def _no_downloads() -> Iterator[None]:
    """Let no import fetch NLTK data: IFBench's does, which waits for minutes where there is no network."""
    import nltk

    real = nltk.download
    nltk.download = lambda *_args, **_kwargs: False
    try:
        yield
    finally:
        nltk.download = real
