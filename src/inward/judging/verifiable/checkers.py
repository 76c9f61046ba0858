"""Checks a program can make of a response: the IFEval checkers, and IFBench's, of the `if-verifiable` package.

IFEval: Zhou et al. 2023, arXiv 2311.07911. IFBench: Pyatkin et al. 2025, arXiv 2507.02833. What sets this module apart from a
bare call of the checkers:

- Responses are hostile. Whatever a checker raises on one becomes "not evaluated" with a reason; it never escapes, and never
  counts as failed. Texts on which the checkers' patterns take quadratic time are not evaluated either.
- A checker that lacks an argument, or cannot use one, draws one at random: the same response would then pass or fail by chance.
  Such a constraint is not evaluated.
- Language detection is seeded, and nothing is ever downloaded. Where NLTK's `punkt_tab` data is absent, sentences cannot be
  counted and those constraints are not evaluated; words in capitals are counted without it, with the same result.
"""

from __future__ import annotations

import csv
import functools
import importlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from inward.errors import MissingExtraError
from inward.records import Constraint

LONGEST = 50_000
LONGEST_RUN = 1_000
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
    """What a checker said. `strict` and `loose` are None if and only if `unevaluated` says why."""

    strict: bool | None = None
    loose: bool | None = None
    unevaluated: str | None = None


def check(constraint: Constraint, response: str, prompt_text: str) -> Check:
    """Check one constraint on one response.

    Loose means that any of IFEval's variants of the response passes: without its first line, its last, both, and each without
    asterisks. A blank response meets nothing. MissingExtraError without the `verifiable` extra; nothing else is raised.
    """
    response = response.strip()
    make = _checker_class(constraint.id)
    if make is None:
        return Check(unevaluated=f"no checker is called {constraint.id!r}")
    heavy = _too_heavy(response)
    if heavy:
        return Check(unevaluated=heavy)
    try:
        checker, problem = _build(make, constraint, prompt_text)
        if problem:
            return Check(unevaluated=problem)
        follows = _follows(constraint.id, checker)
        strict = bool(response) and follows(response)
        loose = strict or any(variant.strip() and follows(variant) for variant in _variants(response))
    except CHECKER_ERRORS as error:
        return Check(unevaluated=_reason(error))
    return Check(strict=strict, loose=loose)


def require() -> None:
    """Raise MissingExtraError unless the checkers can be used."""
    _registry("ifeval")


def _build(make: Callable[[str], Any], constraint: Constraint, prompt_text: str) -> tuple[Any, str | None]:
    """Return the checker with its arguments, and why it cannot be used, if so."""
    given = json.loads(constraint.arguments)
    if not isinstance(given, dict):
        return None, "the arguments are not a JSON object"
    given = {name: value for name, value in given.items() if value is not None}
    checker = make(constraint.id)
    checker.build_description(**given)
    used = checker.get_instruction_args() or {}
    if "prompt" in used:
        given["prompt"] = prompt_text
        checker.build_description(**given)
        used = checker.get_instruction_args() or {}
    lacking = sorted(set(used) - set(given))
    if lacking:
        return None, f"the checker needs {', '.join(lacking)}"
    changed = sorted(name for name, value in used.items() if _plain(value) != _plain(given[name]))
    if changed:
        return None, f"the checker cannot use {', '.join(f'{name} = {given[name]!r}' for name in changed)}"
    return checker, None


def _plain(value: object) -> object:
    """A value up to what the checkers themselves normalise: case, outer white space, the order of a list."""
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
    followed by an asterisk or an apostrophe and more text, where a sentence may end inside what else is one token.
    """
    from nltk.tokenize import word_tokenize

    if re.search(r"[A-Z0-9]\.[*'][^\s]", text):
        raise ValueError("whether a sentence ends within a word in capitals is not known")
    count: int = sum(token.isupper() for token in word_tokenize(text, preserve_line=True))
    wanted = int(arguments["capital_frequency"])
    return count < wanted if arguments["capital_relation"] == "less than" else count >= wanted


def _too_heavy(response: str) -> str | None:
    """Say why the checkers' patterns, some of them quadratic, should not be run on this text."""
    if len(response) > LONGEST:
        return f"the response is longer than {LONGEST} characters"
    if re.search(rf"\s{{{LONGEST_RUN}}}", response):
        return f"the response holds more than {LONGEST_RUN} white-space characters in a row"
    if any(len(line) > LONGEST_RUN and max(map(line.count, '[<"*')) > LONGEST_RUN for line in response.split("\n")):
        return f"one line of the response holds more than {LONGEST_RUN} brackets, quotes or asterisks"
    return None


def _reason(error: Exception) -> str:
    resource = re.search(r"nltk\.download\('(\w+)'\)", str(error))
    if isinstance(error, LookupError) and resource:
        return f"NLTK's {resource[1]} data is not installed: run python -m nltk.downloader {resource[1]}"
    return f"the checker failed: {type(error).__name__}: {str(error)[:200]}"


def _variants(response: str) -> list[str]:
    from if_verifiable.common import get_loose_transformations

    variants: list[str] = get_loose_transformations(response)
    return variants


def _checker_class(name: str) -> Callable[[str], Any] | None:
    found = _registry("ifeval").get(name)
    return found if found is not None else _registry("ifbench").get(name)


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
