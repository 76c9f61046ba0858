r"""Exact answers: whether a response gives one of the reference answers of its prompt.

The references say what kind of answer is asked for:

- *numbers*, where all of them are: the response's final number must equal one as an exact fraction (`numbers`; GSM8K: Cobbe et
  al. 2021, arXiv 2110.14168);
- *a letter*, *yes or no*, *true or false*: the response must commit itself to it (`choices`);
- *an expression* in LaTeX or algebra: the response's final expression must be equal to it (`expressions`);
- *a text*: it must stand in the response, or in its `\boxed{}` where it has one, as whole words in SQuAD's form (Rajpurkar et
  al. 2016, arXiv 1606.05250): lower case, no punctuation, no articles. Deviation: a mark between two digits stays ("3:45",
  "1.5"), but for the comma of thousands.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from inward.judging.verifiable import expressions
from inward.judging.verifiable.choices import chosen_letter, chosen_word, reference_letter, reference_word
from inward.judging.verifiable.numbers import first_number, last_number, leading_number, sole_number
from inward.judging.verifiable.spans import announced, boxed, marked, without_markup

_BARE = str.maketrans("", "", string.punctuation + "“”‘’–—−")
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))|(?<=\d)([.:/-])(?=\d)")
_PRIVATE = {".": "\ue000", ":": "\ue001", "/": "\ue002", "-": "\ue003"}


@dataclass(frozen=True, slots=True)
class AnswerMatch:
    """What was read as the answer of a response (None where nothing was), and whether it is one of the references."""

    extracted: str | None
    correct: bool


def match_answer(response: str, references: Sequence[str]) -> AnswerMatch:
    """Read the answer that a response gives, and compare it with reference answers, of which any will do.

    MissingExtraError where a reference is an expression and the `verifiable` extra is absent; nothing else is raised.
    """
    numbers = [reference_number(reference) for reference in references]
    if numbers and all(number is not None for number in numbers):
        number = final_number(response)
        return AnswerMatch(None if number is None else str(number), number is not None and number in numbers)
    matches = [_match(response, reference) for reference in references]
    correct = [match for match in matches if match.correct]
    return next(iter(correct or [match for match in matches if match.extracted is not None]), AnswerMatch(None, False))


def is_expression(reference: str) -> bool:
    """Say whether a reference answer is to be compared as an expression, which needs the `verifiable` extra."""
    return (
        expressions.looks_like_expression(without_markup(reference))
        and reference_number(reference) is None
        and reference_letter(reference) is None
    )


def reference_number(reference: str) -> Fraction | None:
    """Return the number that a reference answer is: all of it, or what follows `####` in a worked solution."""
    return sole_number(reference.rpartition("####")[2])


def final_number(response: str) -> Fraction | None:
    r"""Return the number that a response gives as its answer.

    In this order: after the last `####` that a number follows, in the last `\boxed{}`, after the last "answer is" or "answer:"
    (what follows the last "=" of that sentence, or else its first number), the last number of all. A box that does not hold
    just one number holds another answer.
    """
    for line in marked(response):
        for number in (sole_number(line, unit=True), leading_number(line)):
            if number is not None:
                return number
    box = boxed(response)
    if box is not None:
        return sole_number(box, unit=True)
    for sentence in announced(response):
        for number in (first_number(sentence.rpartition("=")[2]), first_number(sentence)):
            if number is not None:
                return number
    return last_number(response)


def normalise_text(text: str) -> str:
    """Return the text in SQuAD's form: lower case, without punctuation and articles, single spaces."""
    text = _BETWEEN_DIGITS.sub(lambda match: _PRIVATE.get(match[1], ""), text.lower())
    words = text.translate(_BARE).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _match(response: str, reference: str) -> AnswerMatch:
    """Compare a response with one reference that is not to be read as a number."""
    letter = reference_letter(reference)
    if letter is not None:
        chosen = chosen_letter(response)
        return AnswerMatch(chosen, chosen == letter)
    word = reference_word(reference)
    if word is not None:
        chosen = chosen_word(response, word)
        return AnswerMatch(chosen, chosen == word)
    if is_expression(reference):
        expression = expressions.final_expression(response)
        return AnswerMatch(expression, expression is not None and expressions.same_expression(reference, expression))
    return _match_text(response, reference)


def _match_text(response: str, reference: str) -> AnswerMatch:
    box = boxed(response)
    text, sought = without_markup(response if box is None else box), normalise_text(without_markup(reference))
    correct = bool(sought) and f" {sought} " in f" {normalise_text(text)} "
    if correct or reference.strip().lower() == text.strip().lower():
        return AnswerMatch(reference, True)
    return AnswerMatch(box, False)
