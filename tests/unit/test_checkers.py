from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inward.errors import MissingExtraError
from inward.judging.verifiable import checkers
from inward.judging.verifiable.checkers import Check, check_responses
from inward.records import Constraint

pytest.importorskip("if_verifiable", reason="needs the verifiable extra")
IFEVAL = Path("../shared/data/eval/ifeval.jsonl")
ENGLISH = "the sun rose over the quiet town and people walked to work"


def check(demand: Constraint, response: str, prompt_text: str) -> Check:
    (result,) = check_responses(demand, [response], prompt_text)
    return result


def constraint(name: str, **arguments: object) -> Constraint:
    return Constraint(id=name, arguments=json.dumps(arguments))


def test_strict_and_loose_differ_where_only_a_variant_passes() -> None:
    title = constraint("startend:quotation")
    assert check(title, '"All of it"', "p") == Check(strict=True, loose=True)
    assert check(title, 'Sure!\n"All of it"', "p") == Check(strict=False, loose=True)
    assert check(title, "none of it", "p") == Check(strict=False, loose=False)


def test_a_blank_response_meets_nothing() -> None:
    assert check(constraint("punctuation:no_comma"), " \n", "p") == Check(strict=False, loose=False)


@pytest.mark.parametrize(
    "impossible",
    [
        constraint("no:such_checker"),
        constraint("keywords:existence"),
        constraint("length_constraints:number_words", num_words=3),
        constraint("length_constraints:number_words", num_words=3, relation="roughly"),
        constraint("length_constraints:number_words", num_words=-3, relation="at least"),
        constraint("length_constraints:number_words", num_words="three", relation="at least"),
        constraint("keywords:letter_frequency", letter="!", let_frequency=1, let_relation="at least"),
        constraint("keywords:existence", keywords=["(unclosed"]),
        constraint("punctuation:no_comma", surprise=1),
        constraint("combination:repeat_prompt"),
        Constraint(id="punctuation:no_comma", arguments="[]"),
        Constraint(id="punctuation:no_comma", arguments="{"),
    ],
    ids=lambda item: item.id + item.arguments,
)
def test_what_a_checker_cannot_check_is_not_evaluated(impossible: Constraint) -> None:
    result = check(impossible, "some, response!", "p")
    assert result.dropped
    assert result.reason
    assert result.loose is None


def test_null_arguments_are_as_good_as_absent() -> None:
    given = constraint("length_constraints:number_words", num_words=2, relation="at least", keywords=None)
    assert check(given, "two words", "p").strict is True


def test_an_argument_no_checker_draws_at_random() -> None:
    given = constraint("length_constraints:nth_paragraph_first_word", num_paragraphs=1, nth_paragraph=4, first_word="a")
    assert "nth_paragraph" in (check(given, "a b", "p").reason or "")


@pytest.mark.parametrize(
    "response",
    [
        "\n" * 40_000 + "x",
        "x" + " \n" * 20_000 + "x",
        "[" * 40_000,
        "<<" * 20_000,
        '"' * 40_000,
        "*" * 40_000,
        "{" * 900 + "\n" + "[" * 900,
        ("[" * 900 + "\n") * 50,
        ("<" * 990 + "\n") * 50,
        "a" * 200_000,
        "\x00\ud800\uffff" * 50,
        "A.*B" * 100,
        "\u202e\u0301\U0001f600" * 500,
        "ß" * 1000,
        "\n*" * 20_000,
    ],
    ids=range(15),
)
@pytest.mark.parametrize("benchmark", ["ifeval", "ifbench"])
def test_no_response_makes_a_checker_raise_or_hang(response: str, benchmark: str) -> None:
    for name, make in checkers._registry(benchmark).items():
        result = check(constraint(name, **_arguments(name, make)), response, "the prompt")
        assert (result.strict is None) == (result.loose is None) == (result.dropped and result.reason is not None)


def _arguments(name: str, make: Callable[[str], Any]) -> dict[str, Any]:
    """Arguments that serve the checker: ours for IFEval, for IFBench the ones it draws for itself."""
    known: dict[str, dict[str, Any]] = {
        "keywords:existence": {"keywords": ["river", "stone"]},
        "keywords:frequency": {"keyword": "river", "frequency": 2, "relation": "at least"},
        "keywords:forbidden_words": {"forbidden_words": ["river"]},
        "keywords:letter_frequency": {"letter": "e", "let_frequency": 3, "let_relation": "less than"},
        "language:response_language": {"language": "en"},
        "length_constraints:number_sentences": {"num_sentences": 2, "relation": "at least"},
        "length_constraints:number_paragraphs": {"num_paragraphs": 2},
        "length_constraints:number_words": {"num_words": 9, "relation": "at least"},
        "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "the"},
        "detectable_content:number_placeholders": {"num_placeholders": 2},
        "detectable_content:postscript": {"postscript_marker": "P.S."},
        "detectable_format:number_bullet_lists": {"num_bullets": 2},
        "detectable_format:number_highlighted_sections": {"num_highlights": 2},
        "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 2},
        "combination:repeat_prompt": {"prompt_to_repeat": "the prompt"},
        "startend:end_checker": {"end_phrase": "the end"},
        "change_case:capital_word_frequency": {"capital_frequency": 2, "capital_relation": "at least"},
    }
    if name in known or name in checkers._registry("ifeval"):
        return known.get(name, {})
    if name.startswith("repeat:"):
        return {"prompt_to_repeat": "the prompt", "n_start": 0, "n_end": 5}
    random.seed(0)
    checker = make(name)
    checker.build_description()
    return checker.get_instruction_args() or {}


def test_language_is_the_same_every_time() -> None:
    short = [constraint("language:response_language", language=language) for language in ("en", "nl", "da", "no")]
    first = [[check(c, text, "p") for c in short] for text in ("hallo der", "min bil er", "so gut was")]
    again = [[check(c, text, "p") for c in short] for text in ("hallo der", "min bil er", "so gut was")]
    assert first == again


def test_responses_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert check(constraint("language:response_language", language="en"), "12 34", "p").strict is True
    assert "12 34" not in caplog.text


def test_absent_data_is_named_with_the_command_that_fetches_it() -> None:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        given = constraint("length_constraints:number_sentences", num_sentences=2, relation="at least")
        assert "nltk.downloader punkt_tab" in (check(given, "One. Two. Three.", "p").reason or "")
    else:
        pytest.skip("NLTK's punkt_tab is installed here")


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    def refuse(*_args: object, **_kwargs: object) -> bool:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(nltk, "download", refuse)
    checkers._registry.cache_clear()
    assert check(constraint("format:no_whitespace"), "one", "p").strict is True
    assert nltk.download is refuse
    checkers._registry.cache_clear()


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name, name="if_verifiable")

    checkers._registry.cache_clear()
    monkeypatch.setattr(checkers.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"inward\[verifiable\]"):
        check(constraint("punctuation:no_comma"), "x", "p")
    checkers._registry.cache_clear()


def test_words_in_capitals_are_counted_as_with_any_split_into_sentences() -> None:
    """The count without sentences equals the count with Punkt's, here with untrained (so the most) sentence ends."""
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    rng = random.Random(0)
    pieces = [
        "NASA",
        "U.S.",
        "I",
        "a",
        "The END.",
        '"GO!"',
        "(WHAT?)",
        "A.B",
        "...",
        "\n",
        "x.",
        "WAIT...",
        "'NO'",
        "[OK]",
        "1.5",
        "B:",
    ]
    words, sentences = NLTKWordTokenizer(), PunktSentenceTokenizer()
    for _ in range(500):
        text = "".join(rng.choice(pieces) + rng.choice(["", " ", " ", " "]) for _ in range(rng.randint(1, 12))).strip()
        count = sum(token.isupper() for sentence in sentences.tokenize(text) for token in words.tokenize(sentence))
        exact = [
            check(constraint("change_case:capital_word_frequency", capital_frequency=n, capital_relation="at least"), text, "p")
            for n in (count, count + 1)
        ]
        if text and exact[0].reason is exact[1].reason is None:
            assert [result.strict for result in exact] == [True, False], text


def test_agreement_with_the_package_on_ifeval() -> None:
    if not IFEVAL.is_file():
        pytest.skip(f"needs IFEval's prompts at {IFEVAL}")
    from if_verifiable import IFEvalSample, evaluate_output_for_sample

    compared = unevaluated = passed = 0
    for row in map(json.loads, IFEVAL.read_text(encoding="utf-8").splitlines()):
        for response in _responses(row):
            ours = [
                check(constraint(name, **given), response, row["prompt"])
                for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True)
            ]
            for place, result in enumerate(ours):
                if result.dropped:
                    unevaluated += 1
                    continue
                if row["instruction_id_list"][place] == "change_case:capital_word_frequency":
                    continue  # theirs raises without NLTK's data; the test above covers it
                sample = IFEvalSample(
                    key=0,
                    prompt=row["prompt"],
                    instruction_id_list=[row["instruction_id_list"][place]],
                    kwargs=[row["kwargs"][place]],
                )
                (theirs,), _ = evaluate_output_for_sample("ifeval", sample, response)
                assert (result.strict, result.loose) == (theirs.strict_pass, theirs.loose_pass), (sample, response)
                compared += 1
                passed += theirs.strict_pass
    assert compared > 3000
    assert 0.1 < passed / compared < 0.9, "the synthetic responses should neither all pass nor all fail"
    assert unevaluated / (compared + unevaluated) < 0.08


def _responses(row: dict[str, Any]) -> list[str]:
    return [
        ENGLISH,
        f"<<A Title>>\n\nSection 1 *one* and *two*, [name] [place]\n* a point\n- another\n***\n{row['prompt'][:200]}\nP.S. bye",
        f'"{ENGLISH.upper()}\n******\n{row["prompt"]}"',
        '```json\n{"answer": "My answer is yes."}\n```',
        f"{row['prompt']}\n\n" + " ".join([ENGLISH, "Is there anything else I can help with?"] * 12),
    ]
