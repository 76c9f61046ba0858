"""Rows (scaffold, marker, limits), the scripted engine's script, and the stage from prompts to outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inward.engines.engine import Decoding, Request, Scaffold
from inward.engines.row import MarkerWatch, Row, make_rules
from inward.engines.scripted import END, ScriptedEngine, _decode, _encode, babble
from inward.errors import UsageError
from inward.records import Prompt
from inward.sampling.sample import make_scaffold, sample, seed_for
from inward.thought import DIRECT, GENERIC, SPECIFIC, join, split

PROMPTS = [Prompt(id=name, text=f"Tell me about {name}", source="test") for name in ("tea", "rain")]
DECODING = Decoding(max_new_tokens=400)
SCAFFOLD = Scaffold(opening="T:", closing="<R>", marker="<R>", budget=4)


def row(said: str, scaffold: Scaffold | None = SCAFFOLD, limit: int = 20) -> Row:
    rules = make_rules(Decoding(max_new_tokens=limit), scaffold, stops=frozenset({END}), encode=_encode, decode=_decode)
    made = Row("p", 0, rules)
    tokens = iter(_encode(said))
    while made.finish is None:
        made.take(END if made.forced else next(tokens, END))
    return made


def shape(made: Row) -> str:
    return "".join("w" if written else "m" for written in made.written)


@pytest.mark.parametrize(
    ("said", "text", "written"),
    [
        ("abcdef", "T:abcd<R>ef", "wwmmmmwwwmmm"),  # the budget ends the thought
        ("a", "T:a<R>", "wwmwwwm"),  # an end token in the thought is replaced by the closing
        ("<R>yes", "T:<R>yes", "wwmmmmmmm"),  # the model's own marker
        ("a<R>yes", "T:a<R>yes", "wwmmmmmmmm"),  # ... completed by the budget's last token
        ("ab<R>yes", "T:ab<R<R>>yes", "wwmmmmwwwmmmmm"),  # a marker cut by the budget is not completed
    ],
)
def test_a_row_follows_the_scaffold(said: str, text: str, written: str) -> None:
    made = row(said)
    assert _decode(made.tokens) == text
    assert shape(made) == written
    assert made.finish == "stop"
    assert made.tokens[-1] == END


def test_the_limit_counts_written_tokens() -> None:
    made = row("abcdefghijklmnopqrstuvwxyz", limit=12)
    assert (len(made.tokens), made.finish, _decode(made.tokens)) == (12, "length", "T:abcd<R>efg")


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    assert row("abc", scaffold=None, limit=4).finish == "stop"
    assert row("abcd", scaffold=None, limit=4).finish == "length"


def test_a_marker_is_seen_however_it_is_cut_into_tokens() -> None:
    pieces = {1: "The Here is my", 2: " resp", 3: "onse", 4: ":\n", 5: "Here is my response:", 6: ":", 7: "x"}
    watch = MarkerWatch("Here is my response:", lambda tokens: "".join(pieces[token] for token in tokens))
    assert [watch.completed(tokens) for tokens in ([1, 2, 3, 4], [7, 5], [1, 2, 3, 6])] == [True] * 3
    assert [watch.completed(tokens) for tokens in ([1, 2, 3], [7, 6], [1, 2, 4])] == [False] * 3


def test_a_marker_that_ends_in_part_of_a_character_is_seen() -> None:
    watch = MarkerWatch("\u2192", _decode)
    tokens = _encode("a\u2192")
    assert [watch.completed(tokens[:size]) for size in range(1, len(tokens) + 1)] == [False, False, False, True]


def test_a_scaffold_needs_a_marker_and_a_closing() -> None:
    with pytest.raises(UsageError, match="marker"):
        row("a", scaffold=replace(SCAFFOLD, closing=""))


@pytest.mark.parametrize("fmt", [GENERIC, SPECIFIC])
def test_what_the_scaffold_writes_is_what_join_writes(fmt) -> None:  # type: ignore[no-untyped-def]
    scaffold = make_scaffold(fmt, 7)
    assert scaffold.opening + "some thought" + scaffold.closing + "an answer" == join(fmt, "some thought", "an answer")
    assert (scaffold.marker, scaffold.budget) == (fmt.response_marker, 7)


def test_the_direct_format_has_no_scaffold() -> None:
    with pytest.raises(UsageError, match="direct"):
        make_scaffold(DIRECT, 7)


def test_seeds_depend_on_every_part_and_fit_in_63_bits() -> None:
    seeds = {seed_for(*parts) for parts in [("a", 1), ("a", 2), ("b", 1), (1, "a"), ("a1",), ("a", "1", "")]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for("a", 1) == seed_for("a", 1)


@pytest.mark.parametrize("budget", [None, 40])
def test_outputs_are_split_named_and_ordered(budget: int | None) -> None:
    outputs = sample(PROMPTS, ScriptedEngine(), GENERIC, DECODING, k=3, seed=1, scaffold_budget=budget)
    assert [output.id for output in outputs] == [f"{prompt.id}.{index}" for prompt in PROMPTS for index in range(3)]
    for output in outputs:
        parts = split(GENERIC, output.text, finished=output.finish == "stop")
        assert (output.thought, output.response, output.format_error) == (parts.thought, parts.response, parts.error)
        assert (output.response is None) == (budget is None)  # babble holds no marker
        assert output.prompt_id == output.id.split(".")[0]
        assert output.prompt_tokens == outputs[3 * (output.prompt_id == "rain")].prompt_tokens
        assert any(output.written) == (budget is not None)


def obedient_at(good: set[tuple[int, int]]):  # type: ignore[no-untyped-def]
    """A script that keeps the format only for (index, seed) in `good`."""
    return lambda text, index, seed: join(SPECIFIC, "hm", "yes") if (index, seed) in good else "no marker"


def test_a_format_error_is_drawn_again_and_counted() -> None:
    second, third = seed_for(1, "again", 2), seed_for(1, "again", 3)
    # Index 1 keeps the format at once; 0 and 2 are drawn again together, under their own indices.
    script = obedient_at({(1, 1), (2, second), (0, third)})
    outputs = sample(PROMPTS[:1], ScriptedEngine(script), SPECIFIC, DECODING, k=3, seed=1, tries=3)
    assert [(output.index, output.tries, output.format_error) for output in outputs] == [
        (0, 3, None),
        (1, 1, None),
        (2, 2, None),
    ]
    outputs = sample(PROMPTS[:1], ScriptedEngine(script), SPECIFIC, DECODING, k=3, seed=1, tries=2)
    assert [(output.tries, output.format_error) for output in outputs] == [(2, "no_response_marker"), (1, None), (2, None)]


def test_training_outputs_are_never_drawn_again() -> None:
    outputs = sample(PROMPTS, ScriptedEngine(), SPECIFIC, DECODING, k=2, seed=1)
    assert {(output.tries, output.format_error) for output in outputs} == {(1, "no_response_marker")}


def test_a_cut_thought_is_told_apart() -> None:
    script = lambda text, index, seed: "on and on " * 50  # noqa: E731
    outputs = sample(PROMPTS, ScriptedEngine(script), SPECIFIC, replace(DECODING, max_new_tokens=30), k=1, seed=1)
    assert [(output.format_error, output.finish) for output in outputs] == [("cut_off_in_thought", "length")] * 2


def test_the_script_is_asked_again_after_the_engine_wrote() -> None:
    heard: list[str] = []

    def script(text: str, index: int, seed: int) -> str:
        heard.append(text)
        return "thought" if text.endswith("T:") else "answer"

    engine = ScriptedEngine(script)
    prompt = engine.encode([{"role": "user", "content": "Hi"}])
    scaffold = replace(SCAFFOLD, budget=30)
    drawn = engine.generate([Request(id="p", tokens=prompt, k=1)], DECODING, seed=1, scaffold=scaffold)
    assert drawn[0].text == "T:thought<R>answer"
    assert heard == ["<user>Hi<assistant>T:", "<user>Hi<assistant>T:thought<R>"]


def test_babble_depends_on_its_arguments_only() -> None:
    texts = {babble("p", index, seed) for index in range(3) for seed in range(3)}
    assert len(texts) == 9
    assert babble("p", 0, 0) == babble("p", 0, 0)
