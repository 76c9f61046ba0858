"""What holds for every test: one thread, no deadline for a property (a busy machine is not a bug), the same examples always,
and a cache of verdicts that no other test run has filled.

One thread, set before torch is loaded and handed down to every process that a test starts: the models are tiny, two threads
would wait for each other, and figures would depend on the machine.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from inward.storage import cache_dir

os.environ["OMP_NUM_THREADS"] = "1"
collect_ignore = [] if importlib.util.find_spec("vllm") else ["vllm"]  # `make test-vllm` runs them where it is installed
settings.register_profile("inward", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("inward")


def own_cache() -> tempfile.TemporaryDirectory[str]:
    """Make this run, with every process it starts, a cache of its own, which shares nothing but the fetched models."""
    models = cache_dir() / "models"
    models.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(prefix="inward-tests-")
    (Path(folder.name) / "models").symlink_to(models)
    os.environ["INWARD_CACHE"] = folder.name
    return folder


CACHE = own_cache()  # it goes when the last test is done


@pytest.fixture
def no_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything that looks for the package bitsandbytes not find it."""
    version, find_spec = metadata.version, importlib.util.find_spec

    def lost(package: str) -> str:
        if package == "bitsandbytes":
            raise metadata.PackageNotFoundError(package)
        return version(package)

    def found(name: str, *arguments: Any) -> Any:
        return None if name == "bitsandbytes" else find_spec(name, *arguments)

    monkeypatch.setattr(metadata, "version", lost)
    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
