"""Prompts read once for all their responses: the scores of one pass, and no sharing where the model does not allow it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from inward.config import RewardModelJudge
from inward.errors import UsageError
from inward.judging.judge import Group
from inward.judging.make import check_judge
from inward.judging.reward_model.conversations import Row, batches, by_content, families
from inward.judging.reward_model.judge import RewardModel
from tests.build import prompt
from tests.tiny import tiny_tokenizer
from tests.tiny_reward import tiny_reward_model


def settings(path: Path, **change: Any) -> RewardModelJudge:
    return RewardModelJudge(kind="reward_model", path=str(path), **({"dtype": "float32"} | change))


def groups(seed: int = 3) -> list[Group]:
    """Prompts of 1 to 120 characters with 1 to 6 responses of 0 to 90: among them equal ones and one that begins another."""
    draw = random.Random(seed)

    def text(longest: int) -> str:
        return "".join(draw.choices("abc d", k=draw.randrange(1, longest)))

    made = []
    for at in range(12):
        responses = [text(90) for _ in range(draw.randrange(1, 6))]
        made.append(Group(prompt=prompt(f"{at}: {text(120)}"), responses=(*responses, responses[0], responses[0] + "more")))
    return [*made, Group(prompt=prompt("alone"), responses=("with one response",))]


def scores(judge: RewardModel, asked: list[Group]) -> list[float]:
    found = [ruling.value for group in judge.judge(asked) for ruling in group]
    assert all(value is not None for value in found)
    return [value for value in found if value is not None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reward_model(tmp_path_factory.mktemp("reward"))


def forwards(judge: RewardModel) -> list[tuple[int, int]]:
    """Note the shape of all tokens that the model's layers are given from now on."""
    seen: list[tuple[int, int]] = []
    judge._model.base_model.embed_tokens.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[:2])))
    return seen


@pytest.mark.parametrize("budget", [1, 300, 2000, 100_000])
@pytest.mark.parametrize("pad", [True, False])
def test_scores_are_those_of_one_pass_whatever_the_budget(tmp_path: Path, pad: bool, budget: int) -> None:
    made = tiny_reward_model(tmp_path, pad=pad)
    apart = RewardModel(settings(made, batch_tokens=budget))
    assert apart.why_unshared is None
    whole = RewardModel(settings(made, batch_tokens=1, share_prompts=False))  # row by row: nothing is padded
    assert whole.why_unshared == "judge.share_prompts is false"
    expected = scores(whole, groups())
    assert scores(apart, groups()) == pytest.approx(expected, abs=2e-5)
    assert len({round(value, 3) for value in expected}) > 40


def test_the_prompt_is_read_once_and_padded_sizes_keep_to_the_budget(folder: Path) -> None:
    group = Group(prompt=prompt("p" * 300), responses=tuple(str(at) * (at + 1) for at in range(8)))
    once, again = (RewardModel(settings(folder, share_prompts=shared)) for shared in (True, False))
    seen, seen_whole = forwards(once), forwards(again)
    scores(once, [group])
    scores(again, [group])
    assert seen[0][0] == 1
    assert seen[0][1] > 300
    assert sum(rows * width for rows, width in seen) < 500 < 8 * 300 < sum(rows * width for rows, width in seen_whole)
    assert len(seen) == 2
    budget = RewardModel(settings(folder, batch_tokens=1000))
    seen = forwards(budget)
    scores(budget, groups())
    assert len(seen) > 3
    assert all(rows * width <= 1000 for rows, width in seen)


def test_a_response_that_was_cut_shares_its_prompt_too(folder: Path) -> None:
    group = Group(prompt=prompt("p" * 100), responses=("y" * 500, "short", "z" * 400))
    cut = [RewardModel(settings(folder, max_tokens=200, share_prompts=shared)) for shared in (True, False)]
    assert scores(cut[0], [group]) == pytest.approx(scores(cut[1], [group]), abs=2e-5)
    assert json.loads(cut[0].judge([group])[0][0].detail)["truncated"] is True


def test_plain_pairs_share_their_prompts_and_are_not_the_chat(folder: Path) -> None:
    """Where text is joined without a template, a response's first characters could become one token with the prompt's last."""
    pair = {"input": "pair"}
    once, whole = (scores(RewardModel(settings(folder, share_prompts=s, **pair)), groups()) for s in (True, False))
    assert once == pytest.approx(whole, abs=2e-5)
    assert max(abs(a - b) for a, b in zip(whole, scores(RewardModel(settings(folder)), groups()), strict=True)) > 0.1
    import torch
    from transformers import LlamaForSequenceClassification

    model, tokenizer = LlamaForSequenceClassification.from_pretrained(folder).eval(), tiny_tokenizer()
    with torch.inference_mode():
        by_hand = model(torch.tensor([tokenizer("alone\n\nwith one response")["input_ids"]])).logits.item()
    assert whole[-1] == pytest.approx(by_hand, abs=1e-5)


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    made = tiny_reward_model(tmp_path, chat_template=None)
    for ask in (RewardModel, lambda asked: check_judge(asked, [])):
        with pytest.raises(UsageError, match=r"judge\.input is 'chat', but .* has no chat template: set it to 'pair'"):
            ask(settings(made, input="chat"))


def test_in_bf16_scores_stay_close(folder: Path) -> None:
    once, whole = (RewardModel(settings(folder, share_prompts=s, dtype="bfloat16")) for s in (True, False))
    exact = scores(RewardModel(settings(folder)), groups())
    for judge in (once, whole):
        assert sum(abs(a - b) for a, b in zip(scores(judge, groups()), exact, strict=True)) / len(exact) < 0.1


def other(path: Path, kind: str) -> Path:
    """Save a random model that is no plain causal decoder."""
    import torch
    import transformers

    tokenizer = tiny_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if kind == "bert":
        del shape["num_key_value_heads"]
        config = transformers.BertConfig(**shape, initializer_range=0.5)
        make = transformers.BertForSequenceClassification
    elif kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_head=4, n_layer=2, n_positions=160, num_labels=1, initializer_range=0.3,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        make = transformers.GPT2ForSequenceClassification
    else:
        config = transformers.MistralConfig(**shape, sliding_window=16, initializer_range=0.3)
        make = transformers.MistralForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        make(config).save_pretrained(path)
    tokenizer.model_max_length = 160
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bert", "a trial"),
        ("mistral", "it attends within a sliding window"),
        ("gpt2", None),  # positions are a table of 160: a padded row's must not run over its end
    ],
)
def test_models_that_do_not_allow_it_read_whole_rows(tmp_path: Path, kind: str, reason: str | None) -> None:
    made = other(tmp_path, kind)
    judge = RewardModel(settings(made))
    assert (judge.why_unshared or "").startswith(reason or "")
    assert (judge.why_unshared is None) == (reason is None)
    asked = [
        Group(prompt=prompt("p" * 110), responses=("a", "b")),
        Group(prompt=prompt("q" * 20), responses=("c" * 100, "d" * 98)),
        *groups()[:3],
    ]
    alone = RewardModel(settings(made, batch_tokens=1, share_prompts=False))
    assert scores(judge, asked) == pytest.approx(scores(alone, asked), abs=2e-5)


def longrope(original: int) -> dict[str, Any]:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "rope_theta": 10000.0, "factor": 4.0}
    return {"rope_parameters": {**rope, "original_max_position_embeddings": original}}


def test_positions_that_depend_on_the_longest_of_a_batch_are_read_row_by_row(tmp_path: Path) -> None:
    """Conversations here have 20 to 250 tokens, so that some are longer than 100, and in their company others would change."""
    made = tiny_reward_model(tmp_path, **longrope(100))
    judge = RewardModel(settings(made))
    assert judge.why_unshared == "its positions depend on the longest conversation of a batch"
    alone = RewardModel(settings(made, batch_tokens=1, share_prompts=False))
    assert scores(judge, groups()) == pytest.approx(scores(alone, groups()), abs=2e-5)


def test_below_the_length_where_positions_change_prompts_are_shared(tmp_path: Path) -> None:
    made = tiny_reward_model(tmp_path, **longrope(300))
    judge = RewardModel(settings(made, max_tokens=300))
    assert judge.why_unshared is None
    alone = RewardModel(settings(made, max_tokens=300, batch_tokens=1, share_prompts=False))
    assert scores(judge, groups()) == pytest.approx(scores(alone, groups()), abs=2e-5)


def test_attention_that_looks_ahead_is_found_out_by_the_trial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    causal = modeling_llama.create_causal_mask

    def ahead(**asked: Any) -> Any:
        mask = causal(**asked)
        return None if mask is None else mask[:, :, -1:].expand_as(mask)  # every token sees what the last one sees

    monkeypatch.setattr(modeling_llama, "create_causal_mask", ahead)
    judge = RewardModel(settings(folder))
    assert judge.why_unshared == "a trial gave other hidden states: its attention is not causal"


def row(group: int, tokens: str) -> Row:
    return Row(group=group, first=0, tokens=[ord(token) for token in tokens], types=None, full=len(tokens))


def test_families_hold_every_row_once_and_always_leave_a_token_to_read() -> None:
    rows = [row(0, "shared beginning A"), row(0, "shared beginning"), row(0, "shared beginning B"), row(1, "alone and long")]
    rows += [row(2, "short x"), row(2, "short y"), row(3, "the same text"), row(3, "the same text")]
    found, others = families(rows)
    assert sorted(map(id, [*others, *(r for family in found for r in family.rows)])) == sorted(map(id, rows))
    assert [(family.size, len(family.rows)) for family in found] == [(12, 2), (15, 3)]
    assert all(family.size < len(member.tokens) for family in found for member in family.rows)
    assert {member.group for member in others} == {1, 2}
    turned, _ = families(rows[::-1])
    assert [[r.tokens for r in family.rows] for family in turned] == [[r.tokens for r in family.rows] for family in found]


def test_batches_keep_to_the_budget_and_may_be_even() -> None:
    rows = by_content([row(0, "x" * size) for size in (3, 1, 1, 9, 2, 2, 30)])
    cut = list(batches(rows, 8, lambda one: (0, len(one.tokens))))
    assert [[len(one.tokens) for one in batch] for batch in cut] == [[1, 1, 2, 2], [3], [9], [30]]
    even = list(batches(rows, 8, lambda one: (0, len(one.tokens)), even=True))
    assert [[len(one.tokens) for one in batch] for batch in even] == [[1, 1], [2, 2], [3], [9], [30]]
    apart = list(batches([(5, 1), (1, 3), (1, 1)], 16, lambda one: one))
    assert apart == [[(5, 1), (1, 3)], [(1, 1)]]
    sizes = [1, 100, *[1000] * 4, 1240, 1260, 1500]  # 2,048 tokens keep a processor busy, so more of them need not be padded
    lean = list(batches([(0, size) for size in sizes], 10**6, lambda one: one))
    assert [[size for _, size in batch] for batch in lean] == [[1, 100, 1000], [1000, 1000, 1000, 1240], [1260, 1500]]
