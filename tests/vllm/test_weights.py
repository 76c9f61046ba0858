"""How models get into vLLM and out of it: reloads, and those that keep old weights, adapters, models cut in two, refusals."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inward.engines.agreement import distance, forward_logps
from inward.engines.engine import CLOSED, Completion, Engine
from inward.engines.vllm.engine import VllmEngine
from inward.errors import InwardError, UsageError
from inward.execution.children import Nursery, receive
from tests.contract.test_engines import (  # noqa: F401 (two of the contract, held against `holding` below)
    LONG,
    SHORT,
    ask,
    test_a_closed_engine_says_so_until_it_loads_again,
    test_a_folder_without_a_model_leaves_the_held_one_as_it_is,
)
from tests.tiny import tiny_model
from tests.vllm.models import fitting_model, vllm_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitting_model(tmp_path_factory.mktemp("held"))


@pytest.fixture
def holding() -> Iterator[Callable[[Path], Engine]]:
    """Return a function that makes an engine of a model."""
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
    monkeypatch.setattr("tests.contract.test_engines.tiny_model", fitting_model)


def test_a_loaded_model_draws_as_a_fresh_engine_does(tmp_path: Path) -> None:
    """As in the contract, but one engine after the other: a process holds one."""
    folders = {
        "first": fitting_model(tmp_path / "first", seed=3),
        "other weights": fitting_model(tmp_path / "other", seed=4),
        "another shape": fitting_model(tmp_path / "shape", seed=5, layers=3, hidden=256, context=512),
    }

    def drawn_by(engine: VllmEngine) -> tuple[int, list[Completion]]:
        return engine.context, engine.generate(ask(engine), LONG, seed=1)

    fresh = {}
    for name, folder in folders.items():
        engine = vllm_of(folder)
        fresh[name] = drawn_by(engine)
        engine.close()
    held = vllm_of(folders["first"])
    for name in ("other weights", "another shape", "first"):
        held.load(folders[name])
        assert drawn_by(held) == fresh[name]
    assert fresh["first"] != fresh["other weights"]
    with pytest.raises(UsageError, match="this process holds a vLLM engine already"):
        vllm_of(folders["first"])
    held.close()


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
    other, near = fitting_model(tmp_path / "other", seed=1), nudged(folder, tmp_path / "near", 0.003)
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
    engine.close()


def test_a_closed_engine_holds_no_weights_of_any_model_that_it_had(folder: Path, tmp_path: Path) -> None:
    engine = vllm_of(folder)
    engine.load(fitting_model(tmp_path, seed=1))
    runner = engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    held = [weakref.ref(part) for part in (engine.llm, *runner.kv_caches, *runner.model.parameters())]
    del runner
    engine.close()
    assert [type(part()) for part in held if part() is not None] == []


def test_a_tied_head_is_never_the_one_of_earlier_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On processors vLLM 0.32 keeps a packed copy of the head, which a reload leaves as it is."""
    first, second = (fitting_model(tmp_path / str(seed), seed=seed, tied=True) for seed in (0, 1))
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
    strange = tiny_model(tmp_path / "strange")  # with heads of 8 numbers
    with pytest.raises(UsageError, match=r"vLLM cannot run the model .*head.*sampling\.engine = 'transformers'"):
        vllm_of(strange)


def draw_in_two(connection: Any, folder: Path) -> None:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    engine = vllm_of(folder, tensor_parallel=2)
    first = engine.generate(ask(engine), replace(SHORT, logps=True), seed=1)
    engine.load(folder)
    connection.send((first, engine.generate(ask(engine), replace(SHORT, logps=True), seed=1)))
    connection.recv()


def test_a_model_cut_in_two_draws_the_same_in_a_worker_of_a_pool(folder: Path) -> None:
    engine = vllm_of(folder)
    expected = engine.generate(ask(engine), replace(SHORT, logps=True), seed=1)
    engine.close()
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
