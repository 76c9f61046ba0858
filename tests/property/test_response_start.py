"""Where a response starts in tokens: found by decoding what was sampled, whatever the tokenizer makes of the marker."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.config import TrainingSettings
from inward.engines.engine import Decoding
from inward.engines.transformers.engine import load_engine
from inward.errors import TrainingError
from inward.models.tokenizer import plain_text
from inward.records import Output, Pair
from inward.sampling.sample import sample
from inward.thought import BUILT_IN
from inward.training.examples import build_examples, response_start
from tests.build import prompt
from tests.tiny import tiny_model, tiny_tokenizer

MARKERS = ("<R>", "Here is my response:")
PIECES = ("<", "R", ">", "<R>x", "Here is", " my response:", "!", "é", "思", "🙂", "\n\n", " ", "so it is", "<|im_end|>")


@functools.cache
def merged_tokenizer() -> Any:
    """A byte-level tokenizer with merges that straddle the markers: `<R>x` and `: a` are single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=["<|im_end|>"], show_progress=False)
    bare.train_from_iterator(
        ["<R>x", "<R>x", "Here is my response: a", "Here is my response: a", "so it is é思🙂"] * 20, trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", clean_up_tokenization_spaces=False)


def made(tokenizer: Any, text: str) -> Output:
    tokens = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    return Output(
        id="o", prompt_id="p", index=0, prompt_tokens=(1,), tokens=tokens, written=(False,) * len(tokens),
        text=plain_text(tokenizer, tokens), thought=None, response="r", format_error=None, finish="stop",
    )  # fmt: skip


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("make", [tiny_tokenizer, merged_tokenizer], ids=["bytes", "merged"])
def test_a_token_that_straddles_counts_as_thought(marker: str, make: Any) -> None:
    tokenizer = make()
    output = made(tokenizer, f"thinking\n\n{marker}x and so on<|im_end|>")
    start = response_start(output, marker, functools.partial(plain_text, tokenizer))
    rest = plain_text(tokenizer, output.tokens[start:])
    assert rest == ("x and so on" if make is tiny_tokenizer or marker != "<R>" else " and so on")


@given(parts=st.lists(st.sampled_from(PIECES), max_size=12), marker=st.sampled_from(MARKERS), merged=st.booleans())
def test_the_start_is_right_after_the_token_that_completes_the_marker(parts: list[str], marker: str, merged: bool) -> None:
    tokenizer = merged_tokenizer() if merged else tiny_tokenizer()
    decode = functools.partial(plain_text, tokenizer)
    output = made(tokenizer, "".join(parts))
    start = response_start(output, marker, decode)
    found = [count for count in range(len(output.tokens) + 1) if marker in decode(output.tokens[:count])]
    assert start == (found[0] if found else len(output.tokens))
    assert response_start(output, "", decode) == 0


def test_a_scaffolded_output_gives_its_written_marker(tmp_path: Path) -> None:
    """The engine wrote the markers, so the boundary is known: the marker's last character, inside the run that was written."""
    engine = load_engine(tiny_model(tmp_path), dtype="float32")
    decode = functools.partial(plain_text, engine.tokenizer)
    decoding = Decoding(max_new_tokens=90, temperature=1.0)
    for fmt in (BUILT_IN["generic"], BUILT_IN["specific"]):
        for output in sample([prompt()], engine, fmt, decoding, k=6, seed=1, scaffold_budget=6):
            start = response_start(output, fmt.response_marker, decode)
            assert decode(output.tokens[:start]).endswith(fmt.response_marker)
            assert output.written[start - 1]
            assert output.written[start], "the line end after the marker"
            assert not any(output.written[start + 1 :])


def test_tokens_weigh_what_their_part_does() -> None:
    tokenizer = tiny_tokenizer()
    output = made(tokenizer, "ab<R>cd")
    pair = Pair(
        id="x", prompt_id="p", kind="format_error", chosen_id="o", rejected_id="o",
        chosen_score=1.0, rejected_score=None, margin=None,
    )  # fmt: skip
    settings = TrainingSettings(thought_weight=0.5, response_weight=2.0)
    starts = {"o": response_start(output, "<R>", functools.partial(plain_text, tokenizer))}
    (example,) = build_examples([pair], [output], settings, starts)
    assert example.chosen_weights == (0.5, 0.5, 0.5, 0.5, 0.5, 2.0, 2.0)
    assert example.gap is None
    (same,) = build_examples([pair], [output], TrainingSettings(thought_weight=0.5, response_weight=0.5))
    assert same.rejected_weights == (0.5,) * 7
    with pytest.raises(AssertionError, match="where does the response start"):
        build_examples([pair], [output], settings)


def test_tokens_that_do_not_give_the_text_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"training\.thought_weight and training\.response_weight"):
        response_start(made(tiny_tokenizer(), "ab<R>cd"), "<R>", lambda tokens: "something else")
