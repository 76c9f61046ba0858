"""How likely a continuation is, against plain forward passes: beginnings read once change nothing but the time."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inward.engines.transformers.engine import load_engine
from tests.tiny import tiny_model

TAILS = [(5,), (6, 7), (6, 8, 9), (10, 11, 12, 13), (6, 7, 7)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    engine = load_engine(tiny_model(tmp_path_factory.mktemp("model")), rows=6, dtype="float32")
    assert engine.shared
    return engine


def plain(engine: Any, stem: tuple[int, ...], tail: tuple[int, ...]) -> float:
    """One whole forward pass of the untouched model over one text."""
    import torch

    usual = engine.model.config._attn_implementation
    engine.model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        logits = engine.model(torch.tensor([stem + tail]), use_cache=False).logits[0].log_softmax(-1)
    engine.model.set_attn_implementation(usual)
    return sum(float(logits[len(stem) - 1 + at, token]) for at, token in enumerate(tail))


def stems(seed: int) -> list[tuple[int, ...]]:
    """Texts of a tree with beginnings of many lengths, some alike from end to end, one a single token."""
    draw = random.Random(seed)

    def words(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(256) for _ in range(count))

    trunk = words(70)
    branches = [trunk + words(draw.choice((1, 5, 90))) for _ in range(3)]
    twigs = [branch + words(draw.choice((0, 40))) for branch in branches for _ in range(3)]
    leaves = [twig + words(draw.randrange(30)) for twig in twigs for _ in range(3)]
    return [*leaves, leaves[4], trunk, trunk[:1], words(100), words(3)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("tails", [TAILS, TAILS[:1], [(5,), (6,)]])
def test_log_probabilities_are_those_of_plain_forward_passes(engine: Any, seed: int, tails: list[tuple[int, ...]]) -> None:
    texts = stems(seed)
    found = engine.logps(texts, tails)
    apart = replace(engine, shared=False)
    for text, row, alone in zip(texts, found, apart.logps(texts, tails), strict=True):
        expected = [plain(engine, text, tail) for tail in tails]
        assert row == pytest.approx(expected, abs=2e-4)
        assert alone == pytest.approx(expected, abs=2e-4)


def test_a_shared_beginning_is_read_once(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda ids, **more: read.append(ids.numel()) or forward(ids, **more))
    draw = random.Random(3)
    trunk = tuple(draw.randrange(256) for _ in range(400))
    texts = [(*trunk, at, *range(20)) for at in range(24)]
    engine.logps(texts, [(5,), (6,)])
    assert sum(read) == 400 + 24 * 21


def test_the_engine_is_left_as_it_was(engine: Any) -> None:
    from inward.engines.engine import Decoding, Request

    request = Request(id="a", tokens=engine.encode([{"role": "user", "content": "Hi"}]), k=3)
    before = engine.generate([request], Decoding(max_new_tokens=8), seed=1)
    engine.logps(stems(0), TAILS)
    assert "forward" not in vars(engine.model.get_output_embeddings())
    assert engine.generate([request], Decoding(max_new_tokens=8), seed=1) == before


def test_logits_that_only_rounding_ties_in_bf16_are_told_apart(tmp_path: Path) -> None:
    """In bf16 a logit has eight bits, so that two labels often come out equal; the head is computed in float32."""
    import torch

    coarse = load_engine(tiny_model(tmp_path), rows=6, dtype="bfloat16")
    texts = stems(5)
    with torch.inference_mode():
        coarse.model.set_attn_implementation("sdpa")
        logits = [coarse.model(torch.tensor([text])).logits[0, -1] for text in texts]
    pairs = [(a, b) for a in range(97, 122) for b in range(a)]
    tied = [(at, a, b) for at, row in enumerate(logits) for a, b in pairs if float(row[a]) == float(row[b])]
    assert tied, "bf16 does tie"
    found = coarse.logps(texts, [(token,) for token in range(122)])
    assert sum(found[at][a] == found[at][b] for at, a, b in tied) * 20 < len(tied)
