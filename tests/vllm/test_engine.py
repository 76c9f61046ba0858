"""vLLM under the contract of all engines, and its log-probabilities against those of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inward.engines.agreement import distance, forward_logps
from inward.engines.engine import Decoding, Engine, Scaffold
from inward.engines.vllm.engine import VllmEngine
from inward.errors import UsageError
from tests.contract.test_engines import (  # noqa: F401 (the contract, held against the fixtures below)
    LONG,
    SCAFFOLD,
    SHORT,
    ask,
    reproducible,
    test_a_completion_does_not_depend_on_the_other_requests,
    test_a_completion_ends_with_its_end_token_or_at_the_limit,
    test_a_completion_that_is_drawn_alone_is_the_one_that_it_is_among_others,
    test_a_marker_that_the_model_writes_is_left_alone,
    test_a_prompt_that_does_not_fit_is_named,
    test_a_scaffold_without_room_for_a_response_is_refused,
    test_completions_come_in_the_order_of_requests_and_indices,
    test_encode_tells_turns_and_contents_apart,
    test_fewer_samples_are_the_first_of_more,
    test_log_probabilities_come_where_they_are_asked_for_or_the_engine_says_that_it_has_none,
    test_nothing_asked_nothing_drawn,
    test_progress_counts_every_completion_and_every_drawn_token_once,
    test_samples_of_one_request_differ,
    test_the_same_prompt_twice_is_refused,
    test_the_same_seed_gives_the_same_completions_and_another_seed_others,
    test_the_scaffold_writes_both_markers_and_bounds_the_thought,
    test_without_an_opening_the_thought_starts_at_once,
)
from tests.vllm.models import fitting_model, vllm_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitting_model(tmp_path_factory.mktemp("held"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    held = vllm_of(folder)
    yield held
    held.close()


def test_log_probabilities_are_those_of_a_forward_pass(engine: VllmEngine, folder: Path) -> None:
    asked = replace(LONG, logps=True, temperature=0.7, top_p=0.9, top_k=20)
    for scaffold in (None, SCAFFOLD):
        for one in engine.generate(ask(engine, k=2), asked, seed=3, scaffold=scaffold):
            prompt = next(request.tokens for request in ask(engine) if request.id == one.request_id)
            expected = forward_logps(folder, None, (*prompt, *one.tokens), dtype="float32", trust_remote_code=False)
            assert one.logps is not None
            assert distance(one.logps, expected[len(prompt) - 1 :]) < 1e-4


def test_a_prompt_is_read_once_for_all_its_samples(engine: VllmEngine) -> None:
    """Reading 40 samples of one long prompt anew would take as many blocks of keys as it has; they share all but the last."""
    (request,) = ask(engine, ["word " * 100], k=40)
    blocks = engine.llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
    engine.llm.reset_prefix_cache()
    free, least = blocks.get_num_free_blocks(), []
    step = engine.llm.llm_engine.step

    def watched() -> Any:
        outputs = step()
        least.append(blocks.get_num_free_blocks())
        return outputs

    engine.llm.llm_engine.step = watched
    try:
        engine.generate([request], replace(SHORT, max_new_tokens=4), seed=1)
    finally:
        del engine.llm.llm_engine.step
    whole = len(request.tokens) // 32
    assert free - min(least) <= whole + 2 * engine.rows < whole * engine.rows


def test_characters_of_several_tokens_survive_scaffolds_and_budgets(engine: VllmEngine) -> None:
    scaffold = Scaffold(opening="Denk nach 🦊:\n", closing="\n→ «Antwort» ✓\n", marker="✓", budget=7)
    drawn = engine.generate(ask(engine, k=4), replace(LONG, max_new_tokens=64), seed=2, scaffold=scaffold)
    assert all(one.text.startswith("Denk nach 🦊:\n") for one in drawn)
    assert all("\n→ «Antwort» ✓\n" in one.text for one in drawn)


def test_no_drawing_is_left_over_after_an_interruption(engine: VllmEngine) -> None:
    def interrupt(done: int, tokens: int) -> None:
        raise KeyboardInterrupt

    expected = engine.generate(ask(engine), SHORT, seed=1)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(ask(engine), SHORT, seed=1, progress=interrupt)
    assert engine.generate(ask(engine), SHORT, seed=1) == expected


def test_a_temperature_that_vllm_does_not_take_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(UsageError, match=r"temperature must be in \[0, 2\]"):
        engine.generate(ask(engine), Decoding(temperature=2.5, max_new_tokens=4), seed=1)
