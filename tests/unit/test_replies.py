"""A reply counts where it came to its end, and of it what follows the reasoning. All others are errors that keep the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.config import PairwiseJudge
from inward.engines.scripted import ScriptedEngine
from inward.errors import UsageError
from inward.judging.make import check_judge
from inward.judging.pairwise.by_probability import ProbabilityComparer
from inward.judging.pairwise.by_text import LLMComparer
from inward.judging.pairwise.cache import Cached
from inward.judging.pairwise.comparer import Battle, Reply
from inward.judging.pairwise.endpoint_answer import reply_of
from inward.judging.pairwise.endpoint_labels import EndpointLabelScorer
from inward.judging.pairwise.engine_chat import EngineChat
from inward.judging.pairwise.replies import after_reasoning, read_reply
from inward.judging.spending import Spending
from tests.build import prompt
from tests.tiny import CHAT_TEMPLATE, tiny_model

BATTLE = Battle(prompt=prompt(), first="x", second="y")


@dataclass
class Replying:
    """A chat that gives one reply to everything, and counts what it was asked."""

    reply: Reply
    name: str = "replying"
    asked: int = 0

    def costs(self) -> Spending:
        return Spending(answers=self.asked)

    def complete(self, conversations: Sequence[Sequence[dict[str, str]]], *, max_tokens: int) -> list[Reply]:
        self.asked += len(conversations)
        return [self.reply for _ in conversations]

    def first_tokens(self, conversations: Sequence[Sequence[dict[str, str]]], *, count: int) -> list[Reply]:
        return [self.reply for _ in conversations]


def choice(content: Any, finish: Any = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}]}


@pytest.mark.parametrize("finish", [None, "stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE"])
def test_a_verdict_in_a_complete_reply_counts(finish: str | None) -> None:
    outcome = read_reply(reply_of(choice("So: [[A]]", finish)), "ab", 100)
    assert (outcome.value, outcome.error, outcome.raw) == (1.0, None, "So: [[A]]")


@pytest.mark.parametrize(
    ("finish", "error"),
    [
        ("length", "cut off"),
        ("MAX_TOKENS", "cut off"),
        ("model_length", "cut off"),
        ("content_filter", "a filter withheld"),
        ("SAFETY", "a filter withheld"),
        ("tool_calls", "not known to be complete"),
        ("error", "not known to be complete"),
        ("a new word", "not known to be complete"),
    ],
)
def test_a_verdict_in_an_incomplete_reply_is_an_error_that_keeps_the_text_and_is_not_cached(
    finish: str, error: str, tmp_path: Path
) -> None:
    chat = Replying(reply_of(choice("[[A]] so far, but", finish)))
    comparer = Cached(LLMComparer(chat=chat), tmp_path)
    for asked in (1, 2):
        (outcome,) = comparer.compare([BATTLE])
        assert outcome.value is None
        assert error in str(outcome.error)
        assert outcome.raw == "[[A]] so far, but"
        assert chat.asked == asked, "what was not scored was not cached"


def test_a_server_that_does_not_say_why_an_answer_ended_is_held_to_the_limit() -> None:
    for tokens, finish, decided in (
        (9, None, True),
        (10, None, False),
        (11, None, False),
        (10, "stop", False),  # some servers say "stop" of every answer
        (11, "stop", True),  # it counts the reasoning, and the limit does not
    ):
        outcome = read_reply(Reply(text="[[A]]", finish=finish, completion_tokens=tokens), "ab", 10)
        assert (outcome.value is not None) == decided, (tokens, finish)


REASONINGS = {
    "<think>\n{}\n</think>": "tags",
    "<thinking>{}</thinking>\n": "tags",
    "<THINK >{}</think >": "tags",
    "<reasoning effort='high'>{}</reasoning>": "tags",
    "<seed:think>{}</seed:think>": "Seed-OSS",
    "[THINK]{}[/THINK]": "Magistral",
    "<|START_THINKING|>{}<|END_THINKING|>": "Command A",
    "<|begin_of_thought|>{}<|end_of_thought|>": "OpenThinker",
    "\u25c1think\u25b7{}\u25c1/think\u25b7": "Kimi-VL",
    "<unused94>thought\n{}<unused95>": "MedGemma",
    "<|channel>thought\n{}<channel|>": "Gemma 4",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>": "gpt-oss",
    "analysisWe compare: {}assistantfinal": "gpt-oss without its special tokens",
    "<think>{} <think> again </think>": "opened twice",
    "<think>Shall I close it? </think> No. {}</think>": "closed twice",
    "{}</think>": "opened by the chat template",
}


@pytest.mark.parametrize("form", REASONINGS, ids=REASONINGS.values())
def test_only_what_follows_the_reasoning_counts(form: str) -> None:
    reasoning = form.format("Perhaps [[B]], perhaps [[C]].")
    for answer, value in (("Verdict: [[A]]", 1.0), ("[[B]]", -1.0), ("I cannot say.", None), ("", None), ("[[A]][[B]]", None)):
        outcome = read_reply(Reply(text=reasoning + answer, finish="stop"), "ab", 100)
        assert outcome.value == value
        assert outcome.raw == reasoning + answer


@pytest.mark.parametrize(
    "text",
    [
        "<think>[[A]]",
        "[[A]] <think>or",
        "<think>x</think>[[A]]<thinking>No: ",
        "<|channel|>analysis<|message|>[[A]]<|end|>",
        "<|channel|> commentary<|message|>[[A]]",
        "<|channel>thought\n[[A]]",
        "[THINK][[A]]",
        "analysisThe first is better [[A]]",
    ],
)
def test_reasoning_that_was_not_closed_is_an_error(text: str) -> None:
    outcome = read_reply(Reply(text=text, finish="stop"), "ab", 100)
    assert (outcome.value, outcome.error) == (None, "the reasoning was not closed, so no answer follows it")
    assert outcome.raw == text


@pytest.mark.parametrize("text", ["I think A. [[A]]", "Analysis: [[A]]", "a < think > b [[A]]", "< think> and < /think> [[A]]"])
def test_plain_words_and_marks_that_were_set_apart_are_no_reasoning(text: str) -> None:
    assert after_reasoning(text) == text


@given(st.text(), st.text(alphabet=st.characters(exclude_characters="<[|\u25c1a")))
def test_whatever_was_thought_what_follows_is_the_answer(thought: str, answer: str) -> None:
    assert after_reasoning(f"<think>{thought}</think>{answer}") == answer


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "So "}, {"type": "text", "text": "[[A]]"}], "So [[A]]"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "[[B]]"}]}, {"type": "text", "text": "[[A]]"}], "[[A]]"),
        ([{"type": "output_text", "text": "[[A]]"}], "[[A]]"),
        ([{"text": "[[A]]"}], "[[A]]"),
        ("[[A]]", "[[A]]"),
    ],
)
def test_content_is_a_text_or_a_list_of_parts(content: Any, text: str) -> None:
    assert reply_of(choice(content)) == Reply(text=text, finish="stop")


@pytest.mark.parametrize(
    "content",
    [
        [],
        ["[[A]]"],
        [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "[[A]]"}],
        [{"type": "refusal", "refusal": "no"}],
        [{"type": "text", "text": None}],
        [{"type": "text"}],
        {"type": "text", "text": "[[A]]"},
        7,
        None,
    ],
)
def test_parts_that_are_no_text_are_an_error(content: Any) -> None:
    reply = reply_of(choice(content))
    assert reply.text is None
    assert "the answer holds no text" in str(reply.error)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_a_field_of_reasoning_is_never_the_answer(field: str) -> None:
    assert reply_of(choice("[[A]]", **{field: "[[B]]"})).text == "[[A]]"
    for empty in (None, "", " \n"):
        reply = reply_of(choice(empty, finish="length", **{field: "So it is [[B]]"}))
        assert reply.text is None
        assert reply.error == "the answer holds reasoning and nothing after it (finish_reason 'length')"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "type", "text", "finish_reason", "reasoning"]), inner
            )
        ),
    )
)
def test_any_json_is_a_reply_with_a_text_or_an_error(message: Any) -> None:
    for content in ({"choices": [{"message": message}]}, {"choices": message}, choice(message), choice("x", finish=message)):
        reply = reply_of(content)
        assert (reply.text is None) == (reply.error is not None)
        assert reply.text is None or json.dumps(reply.text)


def test_one_token_is_complete_where_one_was_asked_for_but_not_what_a_filter_left() -> None:
    top = (("A", -0.1), ("B", -2.5))
    for finish, decided in (("length", True), ("stop", True), (None, True), ("content_filter", False), ("tool_calls", False)):
        chat: Any = Replying(Reply(text="A", finish=finish, top=top, completion_tokens=1))
        (outcome,) = ProbabilityComparer(label_scorer=EndpointLabelScorer(chat=chat)).compare([BATTLE])
        assert (outcome.value is not None) == decided, finish
    thinking: Any = Replying(Reply(text=None, error="the answer holds reasoning and nothing after it", top=top))
    scorer = EndpointLabelScorer(chat=thinking)
    assert scorer.score_labels([[]], ("A", "B"))[0].error == "the answer holds reasoning and nothing after it"


def test_an_engine_spells_out_the_special_tokens_that_mark_reasoning() -> None:
    """`Completion.text` has no special token, so the scripted engine's text stands for what a tokenizer leaves of it."""
    engine = ScriptedEngine(lambda *_: "[[B]] [[A]]")
    turns = [[{"role": "user", "content": "which?"}]]

    def decode(tokens: Sequence[int]) -> str:
        text = bytes(token for token in tokens if token < 256).decode()
        return text if "user" in text or "assistant" in text else text.replace("[[B]] ", "[THINK][[B]][/THINK] ") + "<eos>"

    (plain,) = EngineChat(engine=engine, name="m").complete(turns, max_tokens=50)
    assert "contradict" in str(read_reply(plain, "ab", 50).error)
    (marked,) = EngineChat(engine=engine, name="m", decode=decode).complete(turns, max_tokens=50)
    assert read_reply(marked, "ab", 50).value == 1.0
    ordinary = EngineChat(engine=ScriptedEngine(lambda *_: "So [[A]]"), name="m", decode=decode)
    assert ordinary.complete(turns, max_tokens=50)[0].text == "So [[A]]"


def test_reasoning_that_the_chat_template_opens_has_to_be_closed() -> None:
    turns = [[{"role": "user", "content": "which?"}]]

    def outcome(script: str) -> float | None:
        chat = EngineChat(
            engine=ScriptedEngine(lambda *_: script),
            name="m",
            decode=lambda tokens: bytes(t for t in tokens if t < 256).decode().replace("<assistant>", "<assistant><think>\n"),
        )
        return read_reply(chat.complete(turns, max_tokens=50)[0], "ab", 50).value

    assert outcome("So it is [[A]]") is None
    assert outcome("Is it [[B]]?</think>[[A]]") == 1.0


def test_a_template_that_opens_reasoning_leaves_no_verdict_to_the_next_token(tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    path = str(tiny_model(tmp_path, context=4096, chat_template=template))
    settings = PairwiseJudge(kind="pairwise", path=path, dtype="float32", verdict="probability")
    with pytest.raises(UsageError, match=r"begin with reasoning \(<think>\).*judge\.verdict = 'text'"):
        check_judge(settings, [])
    check_judge(settings.model_copy(update={"verdict": "text", "max_tokens": 8}), [])
