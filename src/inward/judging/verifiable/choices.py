r"""Answers out of a few: the letter of a choice, yes or no, true or false.

A text that merely mentions the right word is no right answer, so a response must commit itself. It is read in this order: after
GSM8K's marker, in `\boxed{}`, after "the answer is" and the like, at its beginning, and at last by the letter or word that is
the only one it mentions. Where it names several and commits itself to none, it has given no answer.
"""

from __future__ import annotations

import re

from inward.judging.verifiable.spans import MAX_ANNOUNCEMENTS, MAX_SENTENCE, announced, boxed, marked, without_markup

_REFERENCE_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]{0,2}")
_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}

_LEADING_LETTER = re.compile(
    r"""[\s"'*_\-:]{0,9}(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|letter|answer)\b)?[\s"'*_:]{0,9}
    (?P<open>[(\[]?)\s?(?P<letter>[A-Za-z])(?![\w'’])(?P<rest>.{0,20})""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_SECOND_LETTER = re.compile(r"[)\]]?\s{0,2}(?:,|/|&|and\b|or\b)\s{0,2}(?:or\s|and\s)?[(\[]?[A-HJ-Z](?![\w'’])")
_CHOSEN = re.compile(
    r"\b(?:option|choice)\b(?:[^.\n\d]{0,60}?\bis\b(?!\s+(?:not|wrong|incorrect|false))\s?:?|\s?[:=])"
    r"|\b(?:choose|select|pick|go\s+with)\b",
    re.IGNORECASE,
)
_CALLED_RIGHT = re.compile(r"(?<![\w'’])([A-Z])[)\]]?\s+is\s+(?:therefore\s+)?(?:the\s+)?(?:correct|right|best|answer)\b")
_LONE_LETTER = re.compile(r"(?<![\w'’])(?:[(\[]([A-Za-z])[)\]]|([B-HJ-Z])(?![\w'’]))")
_WORD = re.compile(r"(?P<negated>\b(?:not|isn't|isn’t)\s+)?\b(?P<word>yes|no|true|false)\b", re.IGNORECASE)


def reference_letter(reference: str) -> str | None:
    """Return the letter in capitals that a reference answer is ("A", "(a)", "B."), or None."""
    match = _REFERENCE_LETTER.fullmatch(without_markup(reference).strip())
    return match[1].upper() if match else None


def reference_word(reference: str) -> str | None:
    """Return "yes", "no", "true" or "false" where a reference answer is that, or None."""
    word = without_markup(reference).strip().rstrip(".!").lower()
    return word if word in _OPPOSITE else None


def chosen_letter(response: str) -> str | None:
    """Return the letter in capitals that a response chooses, or None where it chooses none."""
    for span in marked(response):
        if (letter := _leading_letter(without_markup(span))) is not None:
            return letter
    box = boxed(response)
    if box is not None:
        return _leading_letter(without_markup(box))
    for span in announced(response) + _sentences_after_choice(response):
        text = without_markup(span)
        if (letter := _leading_letter(text, article_starts=False) or _only(_lone_letters(text))) is not None:
            return letter
    text = without_markup(response)
    called_right = _CALLED_RIGHT.findall(text)
    if called_right:
        return str(called_right[-1])
    return _leading_letter(text) or _only(_lone_letters(text))


def chosen_word(response: str, reference: str) -> str | None:
    """Return which of a pair (yes and no, or true and false) a response says; `reference` names the pair."""
    pair = (reference, _OPPOSITE[reference])
    for span in marked(response):
        if (word := _stance(span, pair)) is not None:
            return word
    box = boxed(response)
    if box is not None:
        return _stance(box, pair)
    for span in announced(response):
        if (word := _stance(span, pair)) is not None:
            return word
    return _stance(response, pair)


def _leading_letter(text: str, *, article_starts: bool = True) -> str | None:
    """Return the letter that a text begins with, unless another follows at once ("B or C").

    "a" and "i" may also be words: they count only where no word follows. `article_starts` says that so may "A" and "I", as the
    text is the beginning of a sentence.
    """
    match = _LEADING_LETTER.match(text)
    if match is None:
        return None
    letter, rest = match["letter"], match["rest"]
    if _SECOND_LETTER.match(rest):
        return None
    may_be_word = letter in "ai" or (article_starts and letter in "AI")
    if may_be_word and not match["open"] and re.match(r"\s\w", rest):
        return None
    return None if letter.islower() and rest[:1] in ("=", "+", "^") else str(letter.upper())


def _sentences_after_choice(response: str) -> list[str]:
    positions = [match.end() for match in _CHOSEN.finditer(response)][-MAX_ANNOUNCEMENTS:]
    return [re.split(r"[.\n]", response[position : position + MAX_SENTENCE], maxsplit=1)[0] for position in reversed(positions)]


def _lone_letters(text: str) -> set[str]:
    return {(match[1] or match[2]).upper() for match in _LONE_LETTER.finditer(text)}


def _only(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None


def _stance(text: str, pair: tuple[str, str]) -> str | None:
    """Return the word of the pair that a text begins with, unless the other follows at once, or else the only one it has."""
    text = without_markup(text)
    first, second = pair
    leading = re.match(
        rf"\W{{0,9}}({first}|{second})\b(?!\W{{0,3}}(?:(?:and|or|but)\s+)?(?:{first}|{second})\b)", text, re.IGNORECASE
    )
    if leading:
        return str(leading[1].lower())
    words = set()
    for match in _WORD.finditer(text):
        word = match["word"].lower()
        if word in pair:
            words.add(_OPPOSITE[word] if match["negated"] and word in ("true", "false") else word)
    return _only(words)
