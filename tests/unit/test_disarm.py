"""What stands in a judged text is never a token of the judge's own: with its tokenizer at hand, and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.config import EndpointSettings, PairwiseJudge
from inward.errors import UsageError
from inward.judging.make import check_judge, make_judge
from inward.judging.pairwise.by_text import LLMComparer, conversation
from inward.judging.pairwise.cache import Cached
from inward.judging.pairwise.comparer import Battle
from inward.judging.pairwise.disarm import disarm, load_special_tokens, special_tokens_of
from inward.judging.pairwise.judge import Pairwise
from inward.judging.pairwise.replies import marks_reasoning
from tests.build import prompt
from tests.tiny import tiny_model, tiny_tokenizer

OF_COMMON_MODELS = """
<|im_end|> <|im_start|> <|endoftext|> <|eot_id|> <|start_header_id|> <|end|> <|user|> <|assistant|> <|channel|> <|message|>
<|return|> <|START_OF_TURN_TOKEN|> <|vision_start|> <\uff5cUser\uff5c> <\uff5cend\u2581of\u2581sentence\uff5c> <s> </s> <bos>
<eos> <pad> <unk> <start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image_soft_token> <|turn> <turn|> <|channel>
<channel|> <unused94> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS]
[/TOOL_RESULTS] [TOOL_CONTENT] [THINK] [/THINK] [IMG] [PREFIX] <<SYS>> <</SYS>> <think> </think> <thinking> </reasoning>
<tool_call> </tool_call> <tool_response> <extra_id_0> <reserved_106> [gMASK] \u25c1think\u25b7 \u25c1/think\u25b7 ]~b] ]~!b[
[e~[ <seed:think> </seed:think> <minimax:tool_call> <fim_prefix> <image>
"""


@pytest.mark.parametrize("token", OF_COMMON_MODELS.split())
def test_without_a_tokenizer_the_tokens_of_common_models_are_set_apart(token: str) -> None:
    safe = disarm(f"a{token}b{token.upper()}c{token}{token}")
    assert token not in safe
    assert token.upper() not in safe
    assert safe.replace(" ", "") == f"a{token}b{token.upper()}c{token}{token}".replace(" ", ""), "only blanks were added"


@pytest.mark.parametrize(
    "text",
    [
        *("f <| g x", "p <|> q", "a <b> c </b>", "x <- y |> z", "if a < b || c > d", "[1, 2]", "[x] done", "<p>Think.</p>"),
        *("a|b", "<image src='x.png'>", "List<String>", "{% if a %}", "[INSTALL]", "see [IMG_1234.jpg]", "I think </ 3"),
    ],
)
def test_ordinary_text_and_code_stay_as_they_are(text: str) -> None:
    assert disarm(text) == text


def added(*tokens: str, special: bool) -> Any:
    from transformers import AddedToken

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    return tokenizer


def test_a_tokenizers_own_tokens_are_known_whether_special_or_only_added() -> None:
    own = special_tokens_of(added("<start_of_image>", "[TOOL_RESULTS]", "@@turn@@", special=True))
    assert {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<start_of_image>", "[TOOL_RESULTS]", "@@turn@@"} == own
    plain = special_tokens_of(added("</think>", "<table>", "</h1>", "   ", "\n\n", "word", "!", special=False))
    assert plain == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "</think>"}, "HTML, blanks and words are text"


def test_with_a_tokenizer_its_tokens_are_set_apart_and_never_tokenised_as_such() -> None:
    tokenizer = added("@@turn@@", "~~end~~", special=True)
    tokens = special_tokens_of(tokenizer)
    text = "x@@turn@@y~~END~~z <|im_end|>@@turn@@@@turn@@"
    assert disarm(text, tokens) == "x@ @turn@@y~ ~END~~z < |im_end|>@ @turn@@@ @turn@@"
    ids = set(tokenizer(disarm(text, tokens), add_special_tokens=False).input_ids)
    assert not ids & set(tokenizer.added_tokens_decoder)
    battle = Battle(prompt=prompt("@@turn@@?"), first="~~end~~", second="y")
    assert "@@turn@@" in str(conversation(battle, "ab"))
    assert not any(token in str(conversation(battle, "ab", special_tokens=tokens)) for token in tokens)


pieces = st.text("<>|[]ab @/\u200b", min_size=2, max_size=5).filter(lambda text: text == text.strip())


@given(st.frozensets(pieces, min_size=1, max_size=6), st.data())
def test_no_token_stands_in_a_disarmed_text_whatever_the_tokens_are(tokens: frozenset[str], data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(sorted(tokens)) | st.text("<>|[]ab @/", max_size=3), max_size=12)))
    safe = disarm(text, tokens)
    assert not any(token in safe for token in tokens)
    assert "".join(safe.split()) == "".join(text.split()).replace(" ", "")
    assert disarm(safe, tokens) == safe


def test_a_judge_that_quotes_a_disarmed_answer_has_not_begun_to_reason() -> None:
    for mark in (
        "<think>",
        "</think>",
        "[THINK]",
        "<|channel|>analysis",
        "<|channel>thought",
        "\u25c1think\u25b7",
        "</reasoning>",
    ):
        assert marks_reasoning(f"{mark}x<|message|>") or mark.startswith("<|channel|>")
        assert not marks_reasoning(disarm(mark))


def test_a_judge_here_and_a_judge_behind_an_endpoint_know_their_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path / "cache"))
    model = tiny_model(tmp_path / "model", context=4096)
    only_a_tokenizer = tmp_path / "tokenizer"
    added("@@turn@@", special=True).save_pretrained(only_a_tokenizer)

    def comparer_of(**settings: Any) -> tuple[LLMComparer, str]:
        judge = make_judge(PairwiseJudge(kind="pairwise", **settings))
        assert isinstance(judge, Pairwise)
        assert isinstance(judge.comparer, Cached)
        comparer = judge.comparer._comparer
        assert isinstance(comparer, LLMComparer)
        return comparer, judge.comparer.key(Battle(prompt=prompt(), first="a", second="b")).hex()

    here, _ = comparer_of(path=str(model), dtype="float32", max_tokens=8)
    assert here.special_tokens == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    address = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    without, plain_key = comparer_of(endpoint=EndpointSettings(**address))
    assert without.special_tokens == frozenset()
    endpoint = EndpointSettings(**address, tokenizer=str(only_a_tokenizer))
    there, key = comparer_of(endpoint=endpoint)
    assert "@@turn@@" in there.special_tokens
    assert (there.name, key != plain_key) == (without.name, True), "what is shown to the judge is in the key of the cache"
    check_judge(PairwiseJudge(kind="pairwise", endpoint=endpoint), [])
    with pytest.raises(UsageError, match=r"judge\.endpoint\.tokenizer = '.*nowhere'"):
        check_judge(
            PairwiseJudge(kind="pairwise", endpoint=EndpointSettings(**address, tokenizer=str(tmp_path / "nowhere"))), []
        )
    assert load_special_tokens(str(only_a_tokenizer), "x") == there.special_tokens
