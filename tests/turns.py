"""The turns that sampler, judge, reference and trainer take in one process, each with a model, as the stages make them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch

from inward.config import LoraSettings, TrainingSettings
from inward.config.recipe import parse_recipe
from inward.engines.engine import Decoding, Request
from inward.execution.task import Resource
from inward.execution.worker import Holder
from inward.hardware import give_back_memory
from inward.judging.judge import Group
from inward.records import Prompt
from inward.stages.engine import engine_of
from inward.stages.judging import judge_of
from inward.training.train import train
from tests.pairs import made_examples, stored_reference
from tests.tiny import tiny_model
from tests.tiny_reward import tiny_reward_model

TODAY = date(2026, 1, 2)


def held() -> int:
    """Return the bytes of all tensors that are alive: on the GPU where there is one, else those that Python can see.

    Nothing is collected for it: what only the garbage collector would free is still held, for who knows how long.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # which every process keeps that has multiplied once
        return torch.cuda.memory_allocated()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.layout == torch.strided and not thing.is_meta:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def turns(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Let each take its turn; yield its name, the bytes that it held at work, and those that are held after it."""
    model, other = tiny_model(folder / "model", hidden=64), tiny_model(folder / "other", hidden=64, seed=1)
    rewards = tiny_reward_model(folder / "rewards")
    tree: dict[str, Any] = {
        "model": {"path": str(model), "dtype": "float32"},
        "prompts": {"sources": [{"kind": "tasks", "count": 8}]},
        "judge": {"kind": "pairwise", "path": str(other), "verdict": "probability", "cache": False, "dtype": "float32"},
    }
    recipe = parse_recipe(tree)
    rated = parse_recipe(tree | {"judge": {"kind": "reward_model", "path": str(rewards)}})
    holder = Holder()
    turns: list[tuple[str, Resource[Any], Callable[[Any], Any]]] = [
        ("sampler", engine_of(recipe, model, today=TODAY), sample),
        ("pairwise judge", judge_of(recipe, TODAY, recipe.judge), judge),
        ("reward model", judge_of(rated, TODAY, rated.judge), judge),
        ("sampler again, with other weights", engine_of(recipe, other, today=TODAY), sample),
    ]
    for name, resource, use in turns:
        use(holder.get(resource))
        at_work = held()
        holder.release()
        yield name, at_work, held()
    for name, lora in (("trainer", None), ("trainer of an adapter", LoraSettings(rank=4))):
        at_work = learn(model, folder / name, TrainingSettings(epochs=1, batch_pairs=4, lora=lora))
        give_back_memory()
        yield name, at_work, held()


def sample(engine: Any) -> None:
    requests = [
        Request(id=text, tokens=engine.encode([{"role": "user", "content": text}]), k=3) for text in ("Hi", "Name a river.")
    ]
    engine.generate(requests, Decoding(max_new_tokens=12, logps=True), seed=0)


def judge(judge: Any) -> None:
    prompt = Prompt(id="one", text="Name a river.", source="test")
    judge.judge([Group(prompt=prompt, responses=("The Rhine.", "The Seine.", "No."))])


def learn(model: Path, out: Path, settings: TrainingSettings) -> int:
    """Train, with the reference before; return what was held after a step."""
    at_work: list[int] = []
    examples = made_examples(8)
    reference = stored_reference(model, examples, settings, dtype="float32")
    train(model, examples, reference, settings, out, seed=0, dtype="float32", on_step=lambda _: at_work.append(held()))
    return max(at_work)
