"""Exact answers: a table of references, responses and whether the response is right, and what hostile responses cost."""

from __future__ import annotations

import json
import random
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.errors import MissingExtraError
from inward.judging.verifiable import expressions
from inward.judging.verifiable.answers import final_number, is_expression, match_answer, normalise_text, reference_number

GSM8K = Path("../shared/data/prompts/gsm8k_train.jsonl")

RIGHT: list[tuple[str, str]] = [
    # letters
    ("A", "The answer is A"),
    ("A", "(A)"),
    ("A", r"\boxed{(A)}"),
    ("A", r"\boxed{\text{A}}"),
    ("A", r"$\boxed{\textbf{(A)}\ 5}$"),
    ("(A)", "A"),
    ("A.", "**A**"),
    ("a", "(a)"),
    ("C", "Option B is wrong. The answer is C."),
    ("D", "The correct answer is (D) Paris."),
    ("D", "The correct option is D."),
    ("D", "Correct choice: D"),
    ("B", "B"),
    ("B", "B) Paris"),
    ("B", "B. Paris is the capital."),
    ("B", "I would go with B, since Lyon is smaller."),
    ("E", "Answer: **E**"),
    ("E", "Final answer:\n\n(E)"),
    ("C", "#### C"),
    ("C", "Both B and C look right, but (C) is correct."),
    ("A", "The answer is A because the others are smaller."),
    ("A", "The answer is A. B, C and D are too large."),
    ("C", "It must be C."),
    ("B", "Let x be the length. The answer is option B."),
    ("B", "The correct answer is not A but B."),
    ("C", "Answer: C) 42"),
    ("D", "**The correct answer is: (D) 12**"),
    (r"\text{(C)}", r"\boxed{C}"),
    ("x", r"\boxed{x}"),
    # yes, no, true, false
    ("yes", "Yes, because there is no other way."),
    ("Yes", "yes"),
    ("no", "No."),
    ("no", "**No**, a yes would need two more."),
    ("no", "The answer is no."),
    ("no", "It looks like yes at first. Answer: No"),
    ("yes", r"\boxed{\text{Yes}}"),
    ("yes", "#### yes"),
    ("no", "After all of this I have to say no."),
    ("true", "The statement is true."),
    ("False", "The statement is not true."),
    ("true", "True"),
    ("false", "The answer is definitely false."),
    # numbers
    ("18", "She sells 9 eggs at $2. So 9 * 2 = 18\n#### 18"),
    ("18", "18"),
    ("18", "Answer: $18 per day"),
    ("16", r"The final answer is: $\boxed{16}$. I hope it is correct."),
    ("3", "So she has three apples. The answer is 3 apples, not 4."),
    ("70000", "The profit is $200,000 - $130,000 = $<<200000-130000=70000>>70,000\n#### 70,000"),
    ("18", "The answer is:\n\n18"),
    ("18", "The answer to the question is 18 of 20 eggs. Is 7 right?"),
    ("8", "The answer is 5 + 3 = 8. I had 9 apples."),
    ("6", "**Answer**: 6 of 9"),
    ("6", "**Final Answer**\n\n6"),
    ("7", "To find the answer we add 3 and 4 to get 7."),
    ("7", "The answer is not 5. It is 7."),
    ("5", "12-5"),
    ("3", "5*3"),
    ("3", "3.0"),
    ("3", "[1,2,3]"),
    ("1/2", ".5"),
    ("4", "It is 4.0"),
    ("0", "The answer is 0."),
    ("5", "x = 5"),
    ("3", "$x = 3$"),
    ("18", r"\boxed{x = 18}"),
    ("18", r"\boxed{18 \text{ apples}}"),
    ("18", r"\boxed{\text{18 apples}}"),
    ("18", r"\boxed{18 apples}"),
    ("18", r"\boxed{\mathbf{18}}"),
    ("18", r"\boxed {18}"),
    ("18", r"\fbox{18}"),
    ("18", r"So \(18\) it is."),
    ("18", r"\[ 9 \times 2 = 18 \]"),
    ("18", "The answer is `18`."),
    ("$18$", "18"),
    ("18.", "18"),
    ("(18)", "18"),
    # GSM8K's marker
    ("1234", "#### 1,234 dollars"),
    ("1012", "#### 1,012"),
    ("5", "First #### 5, then #### none"),
    ("7", "#### Step 3\nThe answer is 7"),
    ("7", "#### 3. Add them up\n3 + 4, so the answer is 7"),
    ("7", "##### 5 steps\nThe answer is 7"),
    ("7", "### 5\n#### 7"),
    ("7", "####7"),
    ("-7", "#### -7"),
    ("7", "#### $7"),
    ("7", "#### **7**"),
    ("7", "#### 3 + 4 = 7"),
    ("7", "#### x = 7"),
    ("She has 3 * 4 = 12.\n#### 12", "12"),
    # thousands
    ("1234", "1,234"),
    ("1234", r"\boxed{1{,}234}"),
    ("1234", r"\boxed{1,\!234}"),
    ("12000", r"\boxed{12\,000}"),
    ("1200000", r"\boxed{1\,200\,000}"),
    ("12000", "\\boxed{12 000}"),
    ("12000", "12\u202f000"),
    ("12000", "12\u00a0000"),
    ("1234567", "1,234,567.00"),
    ("1,234", "1234"),
    # currency, percent, units
    ("2469/2", "The total is $1,234.50."),
    ("1500", r"\boxed{\$1,500}"),
    ("1500", r"\$1500"),
    ("5", "5€"),
    ("5", "€5"),
    ("5.00", "$5"),
    ("50", "It fell by 50%"),
    ("50%", "50"),
    ("50", r"\boxed{50\%}"),
    ("5", r"\boxed{5\text{ cm}^2}"),
    ("5", r"\boxed{5\text{ cm}^{2}}"),
    (r"5\text{ cm}^2", "5 cm²"),
    ("25", "The area is 25 cm^2."),
    ("25", "The area is 25 m²."),
    ("5", r"\boxed{5\,\mathrm{m/s}}"),
    ("5", "It takes 5h."),
    ("10", "10km"),
    ("90", r"\boxed{90^\circ}"),
    ("90", r"\boxed{90^{\circ}}"),
    ("90", "90°"),
    # fractions and mixed numbers
    ("3/4", "3/4 of them"),
    ("3/4", r"Thus \boxed{\frac{3}{4}}, out of 10."),
    ("1/2", r"\boxed{\frac12}"),
    ("1/2", r"\boxed{\dfrac{1}{2}}"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    ("0.75", r"\frac{3}{4}"),
    ("3.5", r"\boxed{3\frac12}"),
    ("18", r"\boxed{9 \times 2 = 18}"),
    ("18", r"\boxed{x = 9 \cdot 2 = 18}"),
    ("18", r"\boxed{f(2) = 18}"),
    ("18", r"\boxed{\angle ABC = 18^\circ}"),
    ("18", r"\boxed{Total: 18}"),
    ("7/2", r"\boxed{3\frac{1}{2}}"),
    (r"3\frac{1}{2}", "3.5"),
    ("3.5", "You need 3 1/2 cups."),
    ("3.5", "You need 3½ cups."),
    ("1/2", "½"),
    ("1/3", "2 / 6"),
    ("1/2", r"\boxed{\frac{50}{100}}"),
    ("1/2", r"\frac{1.5}{3}"),
    # negative
    ("-3", "That leaves -$3"),
    ("-5", "x = \u22125"),
    ("-5", "x = \u20135"),
    ("-5", r"\boxed{- 5}"),
    ("-1/2", r"\boxed{-\frac{1}{2}}"),
    ("-1/2", r"\boxed{\frac{-1}{2}}"),
    ("1/2", r"\boxed{-\frac{-1}{2}}"),
    ("-3.5", r"-3\frac12"),
    ("-0.5", "The answer is -1/2."),
    # powers and scientific notation
    ("100000", r"\boxed{10^{5}}"),
    ("100000", "10^5"),
    ("100000", "10⁵"),
    ("1024", r"2^{10}"),
    ("1500000", "1.5e6"),
    ("1500000", r"1.5 \times 10^6"),
    ("1500000", "1.5 × 10⁶"),
    ("1500000", "1.5 x 10^6"),
    ("0.0015", r"1.5 \cdot 10^{-3}"),
    ("0.0015", "1.5E-3"),
    (r"10^{5}", "100,000"),
    # expressions
    (r"2\sqrt{3}", r"\boxed{2\sqrt{3}}"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
    (r"\frac{\sqrt{3}}{3}", r"\boxed{\frac{1}{\sqrt{3}}}"),
    (r"\frac{\pi}{4}", r"The answer is $\pi/4$."),
    (r"\frac{\pi}{4}", r"Hence \(\dfrac{\pi}{4}\)"),
    ("x^2+2x+1", r"\boxed{(x+1)^2}"),
    ("x^2+1", "The answer is x^2 + 1."),
    ("2x+3", r"\boxed{3+2x}"),
    ("[0,1)", r"\boxed{[0, 1)}"),
    ("(3,5)", r"\boxed{\left(3, 5\right)}"),
    (r"$\sqrt{2}$", r"$$\sqrt{2}$$"),
    ("(1,2,3)", r"\boxed{(1, 2, 3)}"),
    ("x>2", r"\boxed{2 < x}"),
    (r"11\sqrt2", r"$\boxed{11\sqrt{2}}$"),
    ("6 - 5i", r"\boxed{6-5i}"),
    ("3R^2", r"\boxed{3R^2}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3,\frac{\pi}{2})}"),
    (r"4 \sqrt{2}+\sqrt{15}", r"\boxed{\sqrt{15}+4\sqrt{2}}"),
    ("x>2", r"\boxed{2x > 4}"),
    ("2x+3y=7", r"\boxed{4x + 6y = 14}"),
    ("y=2x+1", r"\boxed{y - 2x = 1}"),
    (r"x=\sqrt{5}", r"\boxed{\sqrt{5}}"),
    (r"\sqrt{5}", r"\boxed{x = \sqrt{5}}"),
    (r"\{1,\sqrt{2}\}", r"\boxed{\{\sqrt{2}, 1\}}"),
    (r"[0,1)", r"\boxed{x \in [0,1)}"),
    (r"(-\infty,0)\cup(1,2]", r"\boxed{(1,2] \cup (-\infty,0)}"),
    (r"\sin^2 x", r"\boxed{1-\cos^2 x}"),
    (r"e^{2x}", r"\boxed{(e^x)^2}"),
    (r"\log_2 3", r"\boxed{\frac{\ln 3}{\ln 2}}"),
    (r"(-\infty, 2]", r"\boxed{(-\infty,2]}"),
    # dates and times
    ("3:45", "The train leaves at 3:45 pm."),
    ("December 1972", "In December 1972."),
    ("14 December 1972", "It was on 14 December, 1972."),
    ("2020-01-05", "The date is 2020-01-05."),
    ("12/25/2020", "On 12/25/2020, it snowed."),
    # texts
    ("Eiffel-Tower", "It was, I think, the Eiffel-Tower!"),
    ("the Eiffel Tower", "Eiffel tower"),
    ("Paris", r"\boxed{\text{Paris}}"),
    ("Paris", "**Paris**"),
    (r"\text{even}", "It is even."),
    ("J. K. Rowling", "J.K. Rowling wrote it... no: J. K. Rowling"),
    ("1.5 million", "About 1.5 million people"),
    ("The", " the"),
    ("Zürich", "In ZÜRICH."),
]

WRONG: list[tuple[str, str]] = [
    # letters
    ("B", "Option B is wrong. The answer is C."),
    ("A", "The answer is B"),
    ("A", "A cat sat on the mat."),
    ("A", "I think it is a bird."),
    ("B", "A, B, C or D"),
    ("B", "It is B or C."),
    ("B", "(A) (B) (C) (D)"),
    ("A", ""),
    ("C", r"The answer is C. \boxed{D}"),
    ("C", r"\boxed{B, C}"),
    ("B", r"\boxed{B, C}"),
    ("B", "The answer is B or C."),
    ("A", "The correct answer is not A but B."),
    # yes, no, true, false
    ("no", "Yes and no."),
    ("yes", "Yes and no."),
    ("no", "Yes or no?"),
    ("no", "Yes, because there is no other way."),
    ("yes", "I cannot say yes or no to that."),
    ("no", "I do not know."),
    ("true", "The statement is not true."),
    ("true", "It is true or false."),
    ("yes", r"Yes. \boxed{\text{No}}"),
    # numbers
    ("5", "12,5x7 is 6"),
    ("2", r"\boxed{2\sqrt{3}}"),
    ("2", r"The answer is $2\sqrt{3}$."),
    ("2", r"\boxed{\sqrt{2}}"),
    ("2", r"\boxed{2\pi}"),
    ("2", r"\boxed{2x}"),
    ("2", r"\boxed{\frac{x}{2}}"),
    ("3", r"\boxed{2^3}"),
    ("2", "25 cm^2"),
    ("5", r"\boxed{3, 5}"),
    ("14", r"\boxed{4x + 6y = 14}"),
    ("5", r"\boxed{3 \text{ or } 5}"),
    ("5", r"\boxed{x}, as 5 is odd"),
    ("3", "#### Step 3\nThe answer is 7"),
    ("1/2", r"\boxed{-\frac{1}{2}}"),
    ("5", r"\boxed{10^{5}}"),
    ("1", r"\boxed{1{,}234}"),
    ("234", r"\boxed{1{,}234}"),
    ("12", r"\boxed{12\,000}"),
    ("3", r"\boxed{3\frac12}"),
    ("31/2", r"\boxed{3\frac12}"),
    ("18", "The answer is 17. There were 18 eggs."),
    ("18", "none at all"),
    ("18", "180"),
    ("18", "1.18"),
    ("0.5", "50%"),
    ("1/3", "0.333"),
    ("5", "-5"),
    # expressions
    (r"\sqrt{3}", r"\boxed{2\sqrt{3}}"),
    (r"2\sqrt{3}", r"\boxed{3\sqrt{2}}"),
    ("x^2+1", r"\boxed{x^2+2}"),
    ("[0,1)", r"\boxed{(0,1]}"),
    ("(3,5)", r"\boxed{(5,3)}"),
    ("(1,2,3)", r"\boxed{(1,3,2)}"),
    ("x>2", r"\boxed{x<2}"),
    ("x>2", r"\boxed{-x>-2}"),
    ("2x+3y=7", r"\boxed{2x+3y=8}"),
    (r"x=\sqrt{5}", r"\boxed{y=\sqrt{5}}"),
    (r"\{1,\sqrt{2}\}", r"\boxed{\{1,\sqrt{2},3\}}"),
    (r"\frac{1}{x}", r"\boxed{x}"),
    (r"\sqrt{2}", "1.414"),
    (r"\pi", "3.14"),
    # dates and times
    ("3:45", "345"),
    ("12/25/2020", "12252020"),
    ("December 1972", "December 1973"),
    # texts
    ("cat", "A category"),
    ("cat", ""),
    ("the", "anything"),
    ("1.5 million", "15 million"),
    ("Paris", r"Not Paris. \boxed{\text{London}}"),
    ("Paris", r"\boxed{}"),
    # hostile
    ("5", "9" * 5000),
    ("5", r"\boxed{9^{9^{9^{9}}}}"),
    ("5", "9^999"),
    ("5", "0^-1"),
    ("5", "1/0"),
    ("5", "5 0/0"),
    ("5", r"\boxed{" * 1000),
    ("5", "\\"),
    ("5", "\x00" + "5"),
    (r"\sqrt{2}", r"\boxed{9^{9^{9^{9}}}}"),
    (r"\sqrt{2}", r"\boxed{100000!}"),
    (r"\sqrt{2}", r"\boxed{\binom{1000000}{500000}}"),
    (r"\sqrt{2}", r"\boxed{\sum_{i=1}^{10000000} i}"),
    (r"\sqrt{2}", r"\boxed{" + "(" * 40 + "1" + ")" * 40 + "}"),
    (r"\sqrt{2}", r"\boxed{__import__('os').system('true')}"),
    (r"\sqrt{2}", r"\boxed{\sqrt{2}" r"\sqrt{2}}"),
    (r"\sqrt{2}", ""),
]


def need_extra(reference: str) -> None:
    """Skip a test that compares expressions where the package for that is absent."""
    if is_expression(reference):
        pytest.importorskip("math_verify", reason="needs the verifiable extra")


@pytest.mark.parametrize(("reference", "response"), RIGHT)
def test_right(reference: str, response: str) -> None:
    need_extra(reference)
    assert match_answer(response, [reference]).correct, match_answer(response, [reference])


@pytest.mark.parametrize(("reference", "response"), WRONG)
def test_wrong(reference: str, response: str) -> None:
    need_extra(reference)
    assert not match_answer(response, [reference]).correct, match_answer(response, [reference])


def test_the_table_is_as_large_as_it_should_be() -> None:
    assert len({*RIGHT, *WRONG}) == len(RIGHT) + len(WRONG) >= 150


@pytest.mark.parametrize("response", ["", "none at all", "1/0", "9" * 5000, r"\boxed{x}", "####"])
def test_no_final_number(response: str) -> None:
    assert final_number(response) is None


def test_references() -> None:
    assert reference_number("She has 3 * 4 = 12.\n#### 1,012") == 1012
    assert reference_number("$5.00") == 5
    assert reference_number("12 apples") is None
    assert reference_number("December 1972") is None
    assert is_expression(r"2\sqrt{3}")
    assert not any(map(is_expression, ("12", r"\frac{1}{2}", "A", "Paris", "12/25/2020", "x-ray", "(A)")))


def test_any_reference_will_do() -> None:
    assert match_answer("It is 4.0", ["5", "4"]).correct
    assert not match_answer("It is 6", ["5", "4"]).correct
    assert match_answer("It is 6", ["5"]).extracted == "6"
    assert match_answer("The answer is B", ["A", "B"]).correct
    assert match_answer("In 1972, of 52", ["1972", "December 1972"]).correct, "not all are numbers, so texts are compared"


def test_the_form_of_texts() -> None:
    assert normalise_text("The  Cat, a dog & AN ox at 3:45 for 1,250.50") == normalise_text("cat dog ox AT 3:45, for 1250.50")


FORMS = ["{}", "#### {}", "The answer is {}.", r"\boxed{{{}}}", "Answer: **{}**", r"So \(x = {}\).", "3 of 4 make ${}"]


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**4), st.sampled_from(FORMS), st.booleans())
def test_a_number_is_read_in_every_form_and_another_is_not(above: int, below: int, form: str, latex: bool) -> None:
    value = Fraction(above, below)
    sign = "-" if value < 0 else ""
    written = str(value)
    if value.denominator == 1:
        written = f"{value.numerator:,}"
    elif latex:
        written = rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    response = form.format(written)
    assert match_answer(response, [str(value)]).correct, response
    assert not match_answer(response, [str(value + 1)]).correct
    assert not match_answer(response, [str(-value)]).correct or value == 0


@given(
    st.text(max_size=40) | st.text(alphabet="aA1()[]{}\\$.,:#/^-*_ \nyesno", max_size=80),
    st.sampled_from(["A", "no", "1", r"\sqrt{2}", "Aas", "[0,1)"]),
)
def test_no_text_raises(response: str, reference: str) -> None:
    need_extra(reference)
    match = match_answer(response, [reference])
    assert match.extracted is not None or not match.correct


HOSTILE = (
    r"answer is |answer |answer: A |1 |9|9,|999,|-$|\boxed{|####|is |1/| |.|{|\frac{1}|\frac|\sqrt[|\text{|^{|_{|$|\(|(A) "
    r"|\boxed{1=|option |A is |yes |not "
    "|\\|\u00bd|#### 1\n"
)


@pytest.mark.parametrize("unit", HOSTILE.split("|"))
@pytest.mark.parametrize("reference", ["5.5", "Z", "no", r"\sqrt{2}", "Paris"])
def test_a_long_hostile_response_comes_to_an_end(unit: str, reference: str) -> None:
    """A pattern that backtracks would take hours here."""
    need_extra(reference)
    assert not match_answer(unit * (50_000 // len(unit)), [reference]).correct


def test_expressions_are_compared_in_a_thread_too() -> None:
    need_extra(r"2\sqrt{3}")
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(match_answer(r"\boxed{\sqrt{12}}", [r"2\sqrt{3}"]).correct))
    thread.start()
    thread.join()
    assert results == [True]


def test_expressions_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name, name="math_verify")

    expressions._library.cache_clear()
    monkeypatch.setattr(expressions.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"inward\[verifiable\]"):
        match_answer(r"\boxed{\sqrt{12}}", [r"2\sqrt{3}"])
    assert match_answer("It is 4", ["4"]).correct, "numbers need none"
    expressions._library.cache_clear()


def test_the_answers_of_gsm8k() -> None:
    if not GSM8K.is_file():
        pytest.skip(f"needs GSM8K's answers at {GSM8K}")
    rng = random.Random(0)
    with GSM8K.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        number = Fraction(row["answer"].replace(",", ""))
        other = number + rng.choice((-100, -10, -1, 1, 2, 10, 100))
        for form in FORMS[:-1]:
            response = f"{row['prompt']}\nLet us see.\n" + form.format(row["answer"])
            assert match_answer(response, [row["answer"]]).correct, (row["id"], form)
            assert not match_answer(f"{row['prompt']}\n" + form.format(other), [row["answer"]]).correct, (row["id"], form)
    assert len(rows) > 2000
