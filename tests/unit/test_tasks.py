from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from inward.errors import UsageError
from inward.judging.verifiable.checkers import check_responses
from inward.prompts import tasks
from inward.prompts.demands import KINDS
from inward.prompts.tasks import generate_tasks
from inward.prompts.topics import REQUESTS, TOPICS, YES_OR_NO
from inward.records import Constraint, Prompt


def take(count: int, seed: int = 0, max_constraints: int = 3) -> list[Prompt]:
    return list(itertools.islice(generate_tasks(seed, max_constraints), count))


def test_the_same_seed_gives_the_same_tasks_however_many_are_taken() -> None:
    assert take(50) == take(80)[:50]
    assert take(50) != take(50, seed=1)


def test_no_text_and_no_id_comes_twice() -> None:
    made = take(5000)
    assert len({prompt.text for prompt in made}) == len({prompt.id for prompt in made}) == 5000


@pytest.mark.parametrize("most", [1, 2, 3])
def test_each_task_has_one_to_the_greatest_number_of_constraints(most: int) -> None:
    sizes = Counter(len(prompt.constraints) for prompt in take(400, max_constraints=most))
    assert set(sizes) == set(range(1, most + 1))


def test_every_kind_of_demand_is_made() -> None:
    made = {constraint.id for prompt in take(2000) for constraint in prompt.constraints}
    assert made == {kind.checker for kind in KINDS}
    assert len(made) >= 20


def test_tasks_run_out_with_an_error_instead_of_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TOPICS", TOPICS[:1])
    monkeypatch.setattr(tasks, "REQUESTS", REQUESTS[:1])
    monkeypatch.setattr(tasks, "YES_OR_NO", YES_OR_NO[:1])
    monkeypatch.setattr(tasks, "KINDS", KINDS[:2])
    monkeypatch.setattr(tasks, "PATIENCE", 100)
    with pytest.raises(UsageError, match="different tasks"):
        take(1000)


def test_no_task_contradicts_itself_and_every_demand_is_what_its_checker_tests() -> None:
    """A response written for the constraints of a task, by the rules below, meets them all by the strict checkers."""
    pytest.importorskip("if_verifiable", reason="needs the verifiable extra")
    for prompt in take(1200):
        response = witness(prompt.constraints)
        for constraint in prompt.constraints:
            (result,) = check_responses(constraint, [response], prompt.text)
            assert result.strict is True, (prompt.text, constraint, result, response)


FILLER = "she told him it is nice and he said that it is so and then one can see that it is not as it seems to be"


def witness(constraints: tuple[Constraint, ...]) -> str:
    given = {constraint.id.split(":")[1]: json.loads(constraint.arguments) for constraint in constraints}
    if "constrained_response" in given:
        return "My answer is yes."
    words = given.get("existence", {}).get("keywords", [])
    frequency = given.get("frequency", {})
    if frequency.get("relation") == "at least":
        words = words + [frequency["keyword"]] * frequency["frequency"]
    base = FILLER
    if given.get("number_words", {}).get("relation") == "at least":
        base = " ".join([FILLER] * 3)
    elif "number_words" in given:
        base = " ".join(FILLER.split()[:5])
    base = " ".join([base, *words])
    letter = given.get("letter_frequency", {})
    if letter.get("let_relation") == "at least":
        base = " ".join([base, *["eat in tone"] * letter["let_frequency"]])
    if given.get("capital_word_frequency", {}).get("capital_relation") == "at least":
        base += " SO" * given["capital_word_frequency"]["capital_frequency"]
    base += " [x]" * given.get("number_placeholders", {}).get("num_placeholders", 0)
    base += " *so*" * given.get("number_highlighted_sections", {}).get("num_highlights", 0)
    return _wrap(given, base)


def _wrap(given: dict[str, dict[str, object]], text: str) -> str:
    """Lay the text out, and put around it what must stand around it."""
    if "json_format" in given:
        return json.dumps({"answer": text})
    if "number_bullet_lists" in given:
        text += "\n* so" * int(str(given["number_bullet_lists"]["num_bullets"]))
    if "number_paragraphs" in given:
        text += "\n***\nso" * (int(str(given["number_paragraphs"]["num_paragraphs"])) - 1)
    if "multiple_sections" in given:
        text += "".join(f"\nSection {n + 1}\nso" for n in range(int(str(given["multiple_sections"]["num_sections"]))))
    if "two_responses" in given:
        text += "\n******\nso"
    if "nth_paragraph_first_word" in given:
        text = f"{given['nth_paragraph_first_word']['first_word']} {text}"
    if "title" in given:
        text = f"<<so>>\n{text}"
    if "postscript" in given:
        text += "\nP.S. so"
    if "end_checker" in given:
        text += f" {given['end_checker']['end_phrase']}"
    if "quotation" in given:
        text = f'"{text}"'
    if "english_lowercase" in given:
        text = text.lower()
    return text.upper() if "english_capital" in given else text
