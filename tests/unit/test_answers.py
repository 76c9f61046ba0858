from __future__ import annotations

import time
from fractions import Fraction

import pytest

from inward.judging.verifiable.answers import compare, final_number, normalise, reference_number


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("She sells 9 eggs at $2. So 9 * 2 = 18\n#### 18", "18"),
        ("#### 1,234 dollars", "1234"),
        ("First #### 5, then #### none", "5"),
        (r"Thus \boxed{\frac{3}{4}}, out of 10.", "3/4"),
        (r"\boxed{\$1,500}", "1500"),
        ("The answer is 5 + 3 = 8. I had 9 apples.", "8"),
        ("The answer to the question is 18 of 20 eggs. Is 7 right?", "18"),
        ("**Answer**: 6 of 9", "6"),
        ("The answer is:\n\n18", "18"),
        ("To find the answer we add 3 and 4 to get 7.", "7"),
        ("The total is $1,234.50.", "2469/2"),
        ("It fell by 50%", "50"),
        ("That leaves -$3", "-3"),
        ("x = \u22125", "-5"),
        ("12-5", "5"),
        ("5*3", "3"),
        ("3.0", "3"),
        (".5", "1/2"),
        ("[1,2,3]", "3"),
        ("3/4 of them", "3/4"),
    ],
)
def test_the_final_number(response: str, number: str) -> None:
    assert final_number(response) == Fraction(number)


@pytest.mark.parametrize("response", ["", "none at all", "1/0", "9" * 5000, r"\boxed{x}", "####"])
def test_no_final_number(response: str) -> None:
    assert final_number(response) is None


def test_references() -> None:
    assert reference_number("She has 3 * 4 = 12.\n#### 1,012") == 1012
    assert reference_number("$5.00") == 5
    assert reference_number("12 apples") is None
    assert reference_number("December 1972") is None


def test_any_reference_will_do() -> None:
    assert compare("It is 4.0", ["5", "4"]).correct
    assert not compare("It is 6", ["5", "4"]).correct
    assert compare("It is 6", ["5"]).found == "6"


def test_texts_are_compared_as_whole_words_without_articles_and_punctuation() -> None:
    assert compare("It was, I think, the Eiffel-Tower!", ["Eiffel-Tower"]).correct
    assert compare("In December 1972.", ["14 December 1972 UTC", "December 1972"]).correct
    assert not compare("A category", ["cat"]).correct
    assert not compare("", ["cat"]).correct
    assert normalise("The  Cat, a dog & AN ox") == "cat dog ox"


def test_a_reference_of_which_nothing_is_left_must_be_met_as_it_stands() -> None:
    assert compare(" The", ["the"]).correct
    assert not compare("anything", ["the"]).correct


@pytest.mark.parametrize(
    "unit",
    ["answer is ", "answer ", "1 ", "9", "9,", "999,", "-$", r"\boxed{", "####", "is ", "1/", " ", ".", r"\frac{1}", "{"],
)
def test_hostile_responses_take_no_time(unit: str) -> None:
    start = time.process_time()
    final_number(unit * (50_000 // len(unit)))
    assert time.process_time() - start < 2.0
