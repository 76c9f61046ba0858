"""Models that vLLM's kernels for processors take, and engines that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inward.config import VllmSettings
from inward.engines.load import load_engine
from inward.engines.vllm.engine import VllmEngine
from tests.tiny import tiny_model


def fitting_model(path: Path, **settings: Any) -> Path:
    """Save a tiny model with heads of 32 numbers, the smallest that these kernels take. The head is not tied unless asked."""
    return tiny_model(path, **{"hidden": 128, "heads": 4, "kv_heads": 2, "spread": 0.15, "tied": False} | settings)


def vllm_of(folder: Path, **settings: Any) -> VllmEngine:
    engine = load_engine(folder, "vllm", rows=6, dtype="float32", options=VllmSettings(**settings))
    assert isinstance(engine, VllmEngine)
    return engine
