"""Lengths in tokens: counted from the tokens as sampled, whatever the tokenizer would make of the text again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.config import PairingSettings
from inward.judging.judge import Group, Ruling
from inward.judging.scripted import Scripted
from inward.judging.stage import judge_outputs
from inward.pairing.pair import describe, pair_outputs
from inward.records import Output
from inward.sampling.lengths import Length, token_length
from inward.thought import BUILT_IN, split
from tests.build import output, prompt, score
from tests.tiny import tiny_tokenizer


def merging_tokenizer() -> Any:
    """Byte-level with merges: one text has many tokenisations, of which a model may draw any."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|e|>"]
    )
    bare.train_from_iterator(["the river answers the stone", "a thought <R> the response is longer"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|e|>", clean_up_tokenization_spaces=False)


TOKENIZERS = {"bytes": tiny_tokenizer(), "merges": merging_tokenizer()}


def sampled(tokenizer: Any, pieces: list[str], fmt: str, finished: bool = True) -> Output:
    """Return an output whose tokens are those of the pieces, each tokenised by itself, as a model might draw them."""
    tokens = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False).input_ids]
    tokens += [tokenizer.eos_token_id] * finished
    text = decode(tokenizer)(tokens)
    parts = split(BUILT_IN[fmt], text)
    made = replace(output("o"), tokens=tuple(tokens), text=text)
    return replace(made, thought=parts.thought, response=parts.response, format_error=parts.error)


def decode(tokenizer: Any) -> Any:
    return lambda tokens: tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def measured(made: Output, tokenizer: Any) -> Length:
    return token_length(made, decode(tokenizer), frozenset(tokenizer.all_special_ids))


WORDS = st.lists(st.sampled_from([" the", " river", "ö", "\U0001f600", " answers", "x"]), min_size=1, max_size=8)


@given(name=st.sampled_from(sorted(TOKENIZERS)), thought=WORDS, response=WORDS)
def test_the_tokens_of_a_response_are_those_from_which_its_text_came(
    name: str, thought: list[str], response: list[str]
) -> None:
    tokenizer = TOKENIZERS[name]
    head = [*thought, "\n", "<R>", "\n"]
    own = [len(tokenizer(piece, add_special_tokens=False).input_ids) for piece in response]
    before = sum(len(tokenizer(piece, add_special_tokens=False).input_ids) for piece in head)
    made = sampled(tokenizer, [*head, *response], "specific")
    blank = len(response[0]) - len(response[0].lstrip()) if name == "bytes" else 0  # a blank token of its own is no response
    assert measured(made, tokenizer) == Length(response=sum(own) - blank, thought=before + blank)


def test_the_token_in_which_a_response_begins_counts_and_special_ones_do_not() -> None:
    tokenizer = TOKENIZERS["merges"]
    made = sampled(tokenizer, ["a", " thought", " <R>", " the"], "specific")
    assert made.response == "the"
    assert len(tokenizer(" the", add_special_tokens=False).input_ids) == 1, "blank and word are one token"
    assert measured(made, tokenizer).response == 1
    direct = sampled(tokenizer, [" the", " the"], "direct")
    assert measured(direct, tokenizer) == Length(response=2, thought=0)
    broken = sampled(tokenizer, ["no", " marker"], "specific")
    assert measured(broken, tokenizer).response == 0


def test_another_tokenizer_is_found_out() -> None:
    made = sampled(TOKENIZERS["merges"], [" the", " river"], "direct")
    with pytest.raises(AssertionError, match="another tokenizer"):
        token_length(made, decode(TOKENIZERS["bytes"]), frozenset())


def test_pairing_controls_and_reports_the_unit_it_is_given() -> None:
    outputs = [output("a", response="x" * 30), output("b", response="y" * 10)]
    scores = [score(outputs[0], 1.0), score(outputs[1], 0.0)]
    characters = pair_outputs(outputs, scores, PairingSettings(rho="auto"), seed=0)
    assert (characters.rho, describe(characters, outputs)["length_unit"]) == (0.5, "characters")
    lengths = {"a": Length(response=5, thought=0), "b": Length(response=9, thought=0)}
    tokens = pair_outputs(outputs, scores, PairingSettings(rho="auto", length="tokens"), seed=0, lengths=lengths)
    found = describe(tokens, outputs, lengths=lengths)
    assert tokens.rho == 0.0, "in tokens the chosen one is the shorter"
    assert (found["chosen_length"], found["rejected_length"], found["length_unit"]) == (5.0, 9.0, "tokens")


def test_a_judge_is_given_the_lengths_that_pairing_goes_by() -> None:
    seen: list[tuple[float, ...]] = []

    class Noting(Scripted):
        def judge(self, groups: Any) -> list[list[Ruling]]:
            seen.extend(group.measured for group in groups)
            return super().judge(groups)

    judge = Noting(score=lambda *_: 0.0)
    outputs = [output("a", response="xx"), output("b", response="y"), output("c", response="y")]
    prompts = [prompt(id="p")]
    judge_outputs(prompts, outputs, judge)
    judge_outputs(prompts, outputs, judge, lengths={"a": 7, "b": 3, "c": 4})
    assert seen == [(2.0, 1.0), (7.0, 3.5)]
    assert Group(prompt=prompts[0], responses=("ab",)).measured == (2.0,)
