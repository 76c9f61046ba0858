"""vLLM under the contract of all engines, and what only it promises: its log-probabilities, its reloads, models cut in two."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.config import VllmSettings
from inward.engines.agreement import distance, forward_logps
from inward.engines.engine import CLOSED, Decoding, Engine, Scaffold
from inward.engines.load import load_engine
from inward.engines.vllm.engine import VllmEngine
from inward.errors import InwardError, UsageError
from inward.execution.children import Nursery, receive
from tests.contract.test_engines import (  # noqa: F401 (the contract, held against the fixtures below)
    LONG,
    SCAFFOLD,
    SHORT,
    TEXTS,
    ask,
    reproducible,
    test_a_closed_engine_says_so_until_it_loads_again,
    test_a_completion_does_not_depend_on_the_other_requests,
    test_a_completion_ends_with_its_end_token_or_at_the_limit,
    test_a_completion_that_is_drawn_alone_is_the_one_that_it_is_among_others,
    test_a_folder_without_a_model_leaves_the_held_one_as_it_is,
    test_a_loaded_model_draws_as_a_fresh_engine_does,
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
from tests.tiny import tiny_model

SHAPE: dict[str, Any] = {"hidden": 128, "heads": 4, "kv_heads": 2}
"""Heads of 32 numbers, the smallest that vLLM's kernels for processors take."""


def vllm_of(folder: Path, **settings: Any) -> VllmEngine:
    engine = load_engine(folder, "vllm", rows=6, dtype="float32", options=VllmSettings(**settings))
    assert isinstance(engine, VllmEngine)
    return engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("held"), spread=0.15, tied=False, **SHAPE)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    held = vllm_of(folder)
    yield held
    held.close()


@pytest.fixture
def holding(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Engine]]:
    """Return a function that makes an engine of a model. Its shape is one that vLLM's kernels take; there is one at a time."""
    made: list[VllmEngine] = []

    def make(folder: Path) -> Engine:
        made.append(vllm_of(folder))
        return made[-1]

    yield make
    for held in made:
        held.close()


@pytest.fixture(autouse=True)
def shapes_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the contract's models made with heads that vLLM's kernels take."""

    def fitting(path: Path, **settings: Any) -> Path:
        return tiny_model(
            path, **{**SHAPE, "tied": False, "spread": 0.15, **settings, "hidden": 2 * settings.get("hidden", 64)}
        )

    monkeypatch.setattr("tests.contract.test_engines.tiny_model", fitting)


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


def nudged(source: Path, target: Path, by: float) -> Path:
    """Save the model of a folder with one weight in a hundred moved a little: as after a short training."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            chosen = torch.rand(parameter.shape, generator=generator) < 0.01
            parameter += by * chosen * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target


def test_new_weights_go_into_the_vllm_that_is_there_and_kept_ones_are_caught(folder: Path, tmp_path: Path) -> None:
    other, near = (
        tiny_model(tmp_path / "other", seed=1, spread=0.15, tied=False, **SHAPE),
        nudged(folder, tmp_path / "near", 0.02),
    )
    engine = vllm_of(folder)
    first, vllm = engine.generate(ask(engine), LONG, seed=1), engine.llm
    engine.load(other)
    assert engine.generate(ask(engine), LONG, seed=1) != first
    engine.load(folder)
    assert engine.llm is vllm
    assert engine.generate(ask(engine), LONG, seed=1) == first
    engine.load(near)
    assert engine.reading is not None
    assert distance(engine.reading.there, engine.reading.here) < 1e-4
    engine.load(folder)
    rpc = engine.llm.collective_rpc
    for unread, problem in ((near, "exactly the log-probabilities that it gave before"), (other, r"differ by \d")):
        engine.llm.collective_rpc = lambda *arguments, **named: None
        with pytest.raises(InwardError, match=f"does not run the weights of .*{problem}"):
            engine.load(unread)
        with pytest.raises(UsageError, match=CLOSED[:20]):
            engine.generate(ask(engine), SHORT, seed=1)
        engine.load(folder)
    assert engine.llm.collective_rpc.__func__ is rpc.__func__
    assert engine.generate(ask(engine), LONG, seed=1) == first
    gone = weakref.ref(engine.llm)
    engine.close()
    del vllm, rpc
    assert gone() is None


def test_a_tied_head_is_never_the_one_of_earlier_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On processors vLLM 0.32 keeps a packed copy of the head, which a reload leaves as it is."""
    first, second = (tiny_model(tmp_path / str(seed), seed=seed, spread=0.15, **SHAPE) for seed in (0, 1))
    engine = vllm_of(first)
    engine.load(second)
    assert "vLLM is started anew" in caplog.text
    assert engine.reading is not None
    assert distance(engine.reading.there, engine.reading.here) < 1e-4
    engine.close()


def test_an_adapter_is_drawn_from_as_the_model_that_it_is_merged_into(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "adapter")
    engine = vllm_of(folder)
    before = engine.generate(ask(engine), LONG, seed=1)
    engine.load(tmp_path / "adapter", folder)
    drawn = engine.generate(ask(engine), replace(LONG, logps=True), seed=1)
    assert [one.tokens for one in drawn] != [one.tokens for one in before]
    prompt = ask(engine)[0].tokens
    expected = forward_logps(
        tmp_path / "adapter", folder, (*prompt, *drawn[0].tokens), dtype="float32", trust_remote_code=False
    )
    assert drawn[0].logps is not None
    assert distance(drawn[0].logps, expected[len(prompt) - 1 :]) < 1e-4
    engine.close()


def test_a_model_that_does_not_fit_or_is_not_known_is_refused_with_a_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"vLLM may use 0\.0 GB: raise .*sampling\.vllm\.memory"):
        vllm_of(folder, memory=1e-9)
    strange = tiny_model(tmp_path / "strange", tied=False)  # with heads of 8 numbers
    with pytest.raises(UsageError, match=r"vLLM 0\.\S+ does not take the model .*sampling\.engine = 'transformers'"):
        vllm_of(strange)


def draw_in_two(connection: Any, folder: Path) -> None:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    engine = vllm_of(folder, tensor_parallel=2)
    first = engine.generate(ask(engine), replace(SHORT, logps=True), seed=1)
    engine.load(folder)
    connection.send((first, engine.generate(ask(engine), replace(SHORT, logps=True), seed=1)))
    connection.recv()


def test_a_model_cut_in_two_draws_the_same_in_a_worker_of_a_pool(engine: VllmEngine, folder: Path) -> None:
    expected = engine.generate(ask(engine), replace(SHORT, logps=True), seed=1)
    nursery = Nursery()
    child = nursery.start(draw_in_two, folder)
    for drawn in receive(child.connection):
        assert [one.tokens for one in drawn] == [one.tokens for one in expected]
        for one, other in zip(drawn, expected, strict=True):
            assert one.logps is not None
            assert other.logps is not None
            assert distance(one.logps, other.logps) < 1e-4
    child.end()
    nursery.close()
