"""The kinds of checkable demand that a generated task can make, in our own words.

A demand is checked by the IFEval checker that its constraint names (Zhou et al. 2023, arXiv 2311.07911), so what the words ask
for must be what that checker tests. Two kinds that share a tag are never combined: a tag names what both would lay claim to
(the end of the text, its letter case, its layout, ...), so that no task contradicts itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from inward.records import Constraint

Arguments = dict[str, object]
Made = tuple[Arguments, tuple[str, ...]]
"""The arguments of the checker, and several ways to say the demand."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of demand. `make` draws its numbers from the generator and takes the words it needs off the list."""

    checker: str
    weight: float
    tags: frozenset[str]
    make: Callable[[Random, list[str]], Made]


def demand(kind: Kind, rng: Random, words: list[str]) -> tuple[str, Constraint]:
    """Return one demand in words, and the constraint that checks it. The words it used are gone from `words`."""
    arguments, wordings = kind.make(rng, words)
    return rng.choice(wordings), Constraint(id=kind.checker, arguments=json.dumps(arguments, sort_keys=True))


def _no_comma(rng: Random, words: list[str]) -> Made:
    return {}, ("Do not use any commas.", "Avoid commas completely.", "There must be no comma in your answer.")


def _lowercase(rng: Random, words: list[str]) -> Made:
    return {}, (
        "Write in English and use lowercase letters only.",
        "Your whole answer must be in English, in lowercase, with no capital letters.",
        "Use no capital letters at all, and answer in English.",
    )


def _uppercase(rng: Random, words: list[str]) -> Made:
    return {}, (
        "Write in English and use CAPITAL LETTERS only.",
        "Your whole answer must be in English and in all capital letters.",
        "USE ONLY CAPITAL LETTERS, and answer in English.",
    )


def _capital_words(rng: Random, words: list[str]) -> Made:
    count = rng.choice((1, 2, 3))
    if rng.random() < 0.5:
        times = "one word" if count == 1 else f"{count} words"
        return {"capital_relation": "at least", "capital_frequency": count}, (
            f"Write at least {times} in ALL CAPITALS.",
            f"Use all capital letters for at least {times}.",
        )
    return {"capital_relation": "less than", "capital_frequency": count + 1}, (
        f"Fewer than {count + 1} words may be in all capital letters.",
        f"Use all capital letters for less than {count + 1} words.",
    )


def _end(rng: Random, words: list[str]) -> Made:
    phrase = rng.choice(
        (
            "That is all.",
            "The end.",
            "I hope this helps.",
            "Have a nice day!",
            "Thank you for reading.",
            "What do you think?",
            "See you soon.",
            "Is there anything else?",
        )
    )
    return {"end_phrase": phrase}, (
        f'End your answer with exactly these words: "{phrase}"',
        f"The last words of your answer must be: {phrase}",
        f"Finish with the phrase: {phrase} Nothing may follow it.",
    )


def _keywords(rng: Random, words: list[str]) -> Made:
    chosen = [words.pop() for _ in range(rng.choice((1, 2, 2)))]
    if len(chosen) == 1:
        return {"keywords": chosen}, (f'Use the word "{chosen[0]}".', f"Your answer must contain the word {chosen[0]}.")
    first, second = chosen
    return {"keywords": chosen}, (
        f'Use the words "{first}" and "{second}".',
        f"Your answer must contain both {first} and {second}.",
        f"Include these two words: {first}, {second}.",
    )


def _forbidden(rng: Random, words: list[str]) -> Made:
    chosen = [words.pop() for _ in range(rng.choice((1, 2, 2)))]
    if len(chosen) == 1:
        return {"forbidden_words": chosen}, (f'Do not use the word "{chosen[0]}".', f"Avoid the word {chosen[0]}.")
    first, second = chosen
    return {"forbidden_words": chosen}, (
        f'Do not use the words "{first}" and "{second}".',
        f"Neither {first} nor {second} may appear in your answer.",
    )


def _keyword_frequency(rng: Random, words: list[str]) -> Made:
    word = words.pop()
    count = rng.choice((2, 2, 3))
    if rng.random() < 0.7:
        return {"keyword": word, "frequency": count, "relation": "at least"}, (
            f'Use the word "{word}" at least {count} times.',
            f"The word {word} must appear {count} times or more.",
        )
    return {"keyword": word, "frequency": count, "relation": "less than"}, (
        f'Use the word "{word}" less than {count} times.',
        f"The word {word} must appear fewer than {count} times.",
    )


def _letter_frequency(rng: Random, words: list[str]) -> Made:
    if rng.random() < 0.5:
        letter, count = rng.choice("aeiont"), rng.choice((15, 20, 25))
        return {"letter": letter, "let_frequency": count, "let_relation": "at least"}, (
            f'Use the letter "{letter}" at least {count} times.',
            f"The letter {letter} must appear {count} times or more in your answer.",
        )
    letter, count = rng.choice("bgkpvwy"), rng.choice((5, 6, 8))
    return {"letter": letter, "let_frequency": count, "let_relation": "less than"}, (
        f'Use the letter "{letter}" less than {count} times.',
        f"The letter {letter} must appear fewer than {count} times in your answer.",
    )


def _words_at_least(rng: Random, words: list[str]) -> Made:
    count = rng.choice((30, 40, 50, 60))
    return {"num_words": count, "relation": "at least"}, (
        f"Write at least {count} words.",
        f"Your answer must have {count} words or more.",
    )


def _words_less_than(rng: Random, words: list[str]) -> Made:
    count = rng.choice((25, 30, 40, 50, 60))
    return {"num_words": count, "relation": "less than"}, (
        f"Write less than {count} words.",
        f"Your answer must have fewer than {count} words.",
        f"Stay under {count} words.",
    )


def _quotation(rng: Random, words: list[str]) -> Made:
    return {}, (
        "Put your whole answer in double quotation marks.",
        'Begin and end your answer with a double quotation mark (").',
        "Your entire answer must stand between double quotation marks.",
    )


def _title(rng: Random, words: list[str]) -> Made:
    return {}, (
        "Give it a title between double angle brackets, like <<My Title>>.",
        "Start with a title written as <<title>>.",
        "Include a title in this form: <<a fine title>>.",
    )


def _bullets(rng: Random, words: list[str]) -> Made:
    count = rng.choice((2, 3, 3, 4))
    return {"num_bullets": count}, (
        f'Use exactly {count} bullet points. Start each of them with "* ".',
        f"Your answer must contain exactly {count} markdown bullet points, like this:\n* a point",
        f'Write a list of exactly {count} points, each on its own line that begins with "- ".',
    )


def _postscript(rng: Random, words: list[str]) -> Made:
    return {"postscript_marker": "P.S."}, (
        "Add a postscript at the end that starts with P.S.",
        'At the end, write a postscript beginning with "P.S."',
    )


def _json(rng: Random, words: list[str]) -> Made:
    return {}, (
        "Give your whole answer as JSON.",
        'Answer with one JSON object and nothing else, such as {"answer": "..."}.',
    )


def _highlights(rng: Random, words: list[str]) -> Made:
    count = rng.choice((1, 2, 2, 3))
    parts = "one part" if count == 1 else f"{count} parts"
    return {"num_highlights": count}, (
        f"Highlight at least {parts} of your answer with asterisks, like *this*.",
        f"Put *asterisks* around at least {parts} of your answer.",
    )


def _paragraphs(rng: Random, words: list[str]) -> Made:
    count = rng.choice((2, 2, 3))
    return {"num_paragraphs": count}, (
        f"Write exactly {count} paragraphs and separate them with ***",
        f"Your answer must have {count} paragraphs, with a line of three asterisks (***) between them.",
    )


def _two_responses(rng: Random, words: list[str]) -> Made:
    return {}, (
        "Give two different answers and put ****** (six asterisks) between them.",
        "Answer twice, in different ways. Separate the two answers with ******",
    )


def _placeholders(rng: Random, words: list[str]) -> Made:
    count = rng.choice((1, 2, 2, 3))
    many = "one placeholder" if count == 1 else f"{count} placeholders"
    return {"num_placeholders": count}, (
        f"Use at least {many} in square brackets, such as [name].",
        f"Leave at least {many} to fill in later, written like [place].",
    )


def _sections(rng: Random, words: list[str]) -> Made:
    count = rng.choice((2, 2, 3))
    return {"section_spliter": "Section", "num_sections": count}, (
        f"Divide your answer into {count} sections. Mark them as Section 1, Section 2 and so on.",
        f'Write {count} sections and begin each of them with "Section" and its number, like this:\nSection 1',
    )


def _first_word(rng: Random, words: list[str]) -> Made:
    word = rng.choice(("today", "well", "imagine", "sometimes", "perhaps", "there", "when", "if"))
    return {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": word}, (
        f'Write a single paragraph whose first word is "{word}".',
        f"Write one paragraph only, and begin it with the word {word}.",
    )


def _constrained(rng: Random, words: list[str]) -> Made:
    return {}, (
        'Answer with one of these sentences: "My answer is yes." "My answer is no." "My answer is maybe."',
        "Choose one of the following as your answer: My answer is yes. / My answer is no. / My answer is maybe.",
    )


_ALL = "case comma end frequency forbidden highlight keywords layout length placeholder start title wrap"
_JSON = "case comma end frequency highlight layout length placeholder start title wrap"
CONSTRAINED = "detectable_format:constrained_response"

KINDS = tuple(
    Kind(checker, weight, frozenset(tags.split()), make)
    for checker, weight, tags, make in (
        ("punctuation:no_comma", 2.0, "comma", _no_comma),
        ("change_case:english_lowercase", 1.0, "case", _lowercase),
        ("change_case:english_capital", 1.0, "case", _uppercase),
        ("change_case:capital_word_frequency", 1.0, "case", _capital_words),
        ("startend:end_checker", 1.0, "end wrap", _end),
        ("keywords:existence", 3.0, "keywords", _keywords),
        ("keywords:forbidden_words", 2.0, "forbidden", _forbidden),
        ("keywords:frequency", 3.0, "frequency", _keyword_frequency),
        ("keywords:letter_frequency", 2.0, "length keywords frequency", _letter_frequency),
        ("length_constraints:number_words", 2.0, "length", _words_at_least),
        ("length_constraints:number_words", 2.0, "length", _words_less_than),
        ("startend:quotation", 1.0, "wrap start title", _quotation),
        ("detectable_format:title", 1.0, "title start", _title),
        ("detectable_format:number_bullet_lists", 1.0, "layout", _bullets),
        ("detectable_content:postscript", 1.0, "end case wrap start", _postscript),
        ("detectable_format:json_format", 0.5, _JSON, _json),
        ("detectable_format:number_highlighted_sections", 1.0, "highlight layout", _highlights),
        ("length_constraints:number_paragraphs", 0.5, "layout", _paragraphs),
        ("combination:two_responses", 0.5, "layout end wrap start title length highlight", _two_responses),
        ("detectable_content:number_placeholders", 1.0, "placeholder", _placeholders),
        ("detectable_format:multiple_sections", 1.0, "layout case", _sections),
        ("length_constraints:nth_paragraph_first_word", 1.0, "layout start wrap", _first_word),
        (CONSTRAINED, 0.5, _ALL, _constrained),
    )
)
