"""A text is encoded as text, whatever it spells out, and text that spells out nothing as the tokenizer encodes it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.models.control_tokens import control_tokens
from inward.models.tokenizer import encode_chat
from tests.tiny_tokenizers import KINDS, SHAPES, make

EXAMPLES = 12
ROLES = ("user", "assistant", "user")
CONTROL = sorted({text for shape in SHAPES.values() for text in (*shape.special, *shape.plain) if text.strip()})
PIECES = [text[:size] for text in CONTROL for size in (2, 5)] + [text[-size:] for text in CONTROL for size in (1, 4)]
ordinary = st.text(alphabet="abz AZ.,\n<|>[]_/é東1", max_size=12) | st.sampled_from(["fox", "<b>x</b>", "  two", "\n\nx"])
forging = st.lists(
    st.sampled_from([*CONTROL, *PIECES, "end|>", "<unk>", "＜s＞", "</S>", "[inst]"]) | ordinary, max_size=6
).map("".join)


def turns(contents: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in zip(ROLES, contents, strict=False)]


def whole(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[int, ...]:
    """Return the tokens of the rendered text, in which the tokenizer finds special tokens wherever they stand."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def control_counts(tokenizer: Any, tokens: tuple[int, ...]) -> Counter[int]:
    ids = set(control_tokens(tokenizer).ids.values()) - {tokenizer.unk_token_id}
    return Counter(token for token in tokens if token in ids)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@given(contents=st.tuples(forging, forging, forging))
@settings(max_examples=EXAMPLES)
def test_only_the_template_writes_control_tokens(kind: str, shape: str, contents: tuple[str, ...]) -> None:
    tokenizer = make(kind, shape)
    tokens = encode_chat(tokenizer, turns(contents))
    plain = encode_chat(tokenizer, turns(("word", "word", "word")))
    assert control_counts(tokenizer, tokens) == control_counts(tokenizer, plain)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@given(contents=st.tuples(ordinary, ordinary, ordinary))
@settings(max_examples=EXAMPLES)
def test_ordinary_text_is_encoded_as_the_tokenizer_does(kind: str, shape: str, contents: tuple[str, ...]) -> None:
    tokenizer = make(kind, shape)
    messages = turns(contents)
    tokens = whole(tokenizer, messages)
    if control_counts(tokenizer, tokens) == control_counts(tokenizer, whole(tokenizer, turns(("word", "word", "word")))):
        assert encode_chat(tokenizer, messages) == tokens


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@given(contents=st.tuples(ordinary, ordinary, ordinary))
@settings(max_examples=EXAMPLES)
def test_the_copy_of_the_tokenizer_encodes_ordinary_text_alike(kind: str, shape: str, contents: tuple[str, ...]) -> None:
    """The way for text that spells out control tokens is the usual one in all else: borders, blanks, normalising."""
    tokenizer = make(kind, shape)
    text = tokenizer.apply_chat_template(turns(contents), add_generation_prompt=True, tokenize=False, enable_thinking=False)
    usual = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    encoder = control_tokens(tokenizer)
    assert encoder._literal.encode_pieces(encoder._cut(text, [])) == usual


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["no merges", "regex"])
@given(contents=st.tuples(forging, forging, forging))
@settings(max_examples=EXAMPLES)
def test_no_character_is_lost(kind: str, shape: str, contents: tuple[str, ...]) -> None:
    tokenizer = make(kind, shape)
    text = tokenizer.decode(encode_chat(tokenizer, turns(contents)), skip_special_tokens=False)
    blanks = shape == "phi"  # its control tokens swallow the blanks after them
    for content in contents:
        assert content.strip() in text if not blanks else "".join(content.split()) in "".join(text.split())


@pytest.mark.parametrize("kind", KINDS)
@given(text=forging, second=forging)
@settings(max_examples=EXAMPLES)
def test_text_without_a_template_holds_no_control_tokens(kind: str, text: str, second: str) -> None:
    tokenizer = make(kind, "deepseek")
    encoder = control_tokens(tokenizer)
    assert not control_counts(tokenizer, encoder.encode_text(text))
    tokens, _ = encoder.encode_pair(text, second)
    assert not control_counts(tokenizer, tokens)
