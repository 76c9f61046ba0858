from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.errors import UsageError
from inward.prompts.draw import Draw, check_lengths, draw
from inward.records import Prompt, content_id

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**32)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=content_id(str(n)), text=str(n), source="test") for n in range(count)]


def everything(drawn: Draw) -> list[Prompt]:
    return [*drawn.validation, *(prompt for part in drawn.iterations for prompt in part)]


@given(per=sizes, validation=sizes, iterations=sizes, spare=st.integers(0, 9), seed=seeds)
def test_no_prompt_is_dealt_twice_and_every_part_is_full(
    per: int, validation: int, iterations: int, spare: int, seed: int
) -> None:
    deck = prompts(validation + per * iterations + spare)
    drawn = draw(deck, per_iteration=per, validation=validation, iterations=iterations, seed=seed)
    dealt = everything(drawn)
    assert len({prompt.id for prompt in dealt}) == len(dealt) == validation + per * iterations
    assert len(drawn.validation) == validation
    assert [len(part) for part in drawn.iterations] == [per] * iterations
    assert set(dealt) <= set(deck)


@given(per=sizes, validation=sizes, iterations=sizes, seed=seeds, order=st.randoms(use_true_random=False))
def test_the_draw_does_not_depend_on_the_order_of_the_prompts(
    per: int, validation: int, iterations: int, seed: int, order: random.Random
) -> None:
    deck = prompts(validation + per * iterations + 3)
    shuffled = list(deck)
    order.shuffle(shuffled)
    first, second = (
        draw(cards, per_iteration=per, validation=validation, iterations=iterations, seed=seed) for cards in (deck, shuffled)
    )
    assert first == second


@given(per=sizes, validation=sizes, iterations=sizes, more=st.integers(1, 3), seed=seeds)
def test_more_iterations_leave_the_earlier_ones_as_they_were(
    per: int, validation: int, iterations: int, more: int, seed: int
) -> None:
    deck = prompts(validation + per * (iterations + more))
    short = draw(deck, per_iteration=per, validation=validation, iterations=iterations, seed=seed)
    long = draw(deck, per_iteration=per, validation=validation, iterations=iterations + more, seed=seed)
    assert long.validation == short.validation
    assert long.iterations[:iterations] == short.iterations


@given(per=sizes, validation=sizes, iterations=sizes, data=st.data())
def test_too_few_prompts_say_how_many_are_missing(per: int, validation: int, iterations: int, data: st.DataObject) -> None:
    missing = data.draw(st.integers(1, validation + per * iterations))
    with pytest.raises(
        UsageError, match=rf"^{missing} prompts? (is|are) missing.*prompts\.per_iteration, prompts\.validation or iterations"
    ):
        draw(
            prompts(validation + per * iterations - missing),
            per_iteration=per,
            validation=validation,
            iterations=iterations,
            seed=0,
        )


@given(per=sizes, validation=sizes, iterations=st.integers(1, 30), spare=st.integers(0, 9), seed=seeds)
def test_prompts_that_recur_do_so_pass_by_pass(per: int, validation: int, iterations: int, spare: int, seed: int) -> None:
    deck = prompts(validation + per + spare)
    drawn = draw(deck, per_iteration=per, validation=validation, iterations=iterations, seed=seed, recur=True)
    held_out = {prompt.id for prompt in drawn.validation}
    assert len(held_out) == validation
    for part in drawn.iterations:
        assert len({prompt.id for prompt in part}) == len(part) == per, "no prompt is twice in one iteration"
    dealt = [prompt.id for part in drawn.iterations for prompt in part]
    assert not held_out & set(dealt), "validation prompts stay apart"
    passes = [dealt[start : start + per + spare] for start in range(0, len(dealt), per + spare)]
    for one in passes:
        assert len(set(one)) == len(one), "a pass holds each prompt once"
    more = draw(deck, per_iteration=per, validation=validation, iterations=iterations + 3, seed=seed, recur=True)
    assert more.iterations[:iterations] == drawn.iterations
    assert more.validation == drawn.validation


@given(per=sizes, validation=sizes, iterations=sizes, seed=seeds)
def test_where_the_prompts_suffice_recurring_changes_nothing(per: int, validation: int, iterations: int, seed: int) -> None:
    deck = prompts(validation + per * iterations)
    first, second = (
        draw(deck, per_iteration=per, validation=validation, iterations=iterations, seed=seed, recur=recur)
        for recur in (False, True)
    )
    assert first == second


def test_a_second_pass_has_another_order_and_needs_an_iterations_prompts() -> None:
    first, second = draw(prompts(60), per_iteration=50, validation=10, iterations=2, seed=0, recur=True).iterations
    assert set(first) == set(second)
    assert first != second
    with pytest.raises(UsageError, match=r"^1 prompt is missing: 10 .* 51 for an iteration make 61"):
        draw(prompts(60), per_iteration=51, validation=10, iterations=2, seed=0, recur=True)


def test_another_seed_gives_another_draw() -> None:
    deck = prompts(200)
    first, second = (draw(deck, per_iteration=50, validation=50, iterations=2, seed=seed) for seed in (0, 1))
    assert first.validation != second.validation


def test_too_long_prompts_are_an_error_or_dropped_and_counted() -> None:
    deck = [Prompt(id=str(n), text="word " * n, source="test") for n in range(1, 6)]
    kept, notes = check_lengths(deck, lambda text: len(text.split()), 3, "drop")
    assert [prompt.id for prompt in kept] == ["1", "2", "3"]
    assert notes == ("2 prompts of more than 3 tokens dropped",)
    assert check_lengths(deck, len, 25, "error") == (tuple(deck), ())
    with pytest.raises(UsageError, match=r"prompt 4 of test has 4 tokens, more than 3, .*prompts.max_tokens"):
        check_lengths(deck, lambda text: len(text.split()), 3, "error")
    with pytest.raises(UsageError, match="every prompt"):
        check_lengths(deck, len, 1, "drop")
