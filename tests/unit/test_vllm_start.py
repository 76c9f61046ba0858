"""What of starting vLLM can be told without it: a package that is not there or too old, the order of waking up."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from inward.engines.load import load_engine
from inward.engines.vllm.start import ENVIRONMENT, NEEDED, reload
from inward.errors import InwardError, MissingExtraError, UsageError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def fake_vllm(monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    """Put a package in the place of vLLM that has all that is used of it but one name."""
    package, exceptions = ModuleType("vllm"), ModuleType("vllm.exceptions")
    for owner, names in NEEDED.items():
        setattr(package, owner, type(owner, (), {name: None for name in names if f"{owner}.{name}" != without}))
    package.__dict__["__version__"] = "0.20.1"
    exceptions.__dict__["VLLMError"] = type("VLLMError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.exceptions", exceptions)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"vllm is not installed.*pip install 'inward\[vllm\]'"):
        load_engine(tmp_path, "vllm")


@pytest.mark.parametrize("missing", [f"{owner}.{names[0]}" for owner, names in NEEDED.items()])
def test_a_version_that_lacks_a_call_is_refused_by_that_name(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_vllm(monkeypatch, without=missing)
    with pytest.raises(UsageError, match=rf"vLLM 0\.20\.1 lacks {missing}, which .*pip install 'inward\[vllm\]'"):
        load_engine(tmp_path, "vllm")


class FakeLLM:
    """Notes what it is told; `forgets` is whether it drops its cached keys."""

    def __init__(self, *, forgets: bool = True) -> None:
        self.told: list[Any] = []
        self._forgets = forgets

    def wake_up(self, tags: list[str]) -> None:
        self.told.append(tags)

    def collective_rpc(self, method: str, kwargs: dict[str, str]) -> None:
        self.told.append((method, kwargs))

    def reset_prefix_cache(self) -> bool:
        self.told.append("reset")
        return self._forgets


def worker_with(monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    module = "vllm.v1.worker.gpu_model_runner"
    for name in ("vllm", "vllm.v1", "vllm.v1.worker"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(GPUModelRunner=SimpleNamespace(reload_weights=method)))


def test_weights_have_their_memory_before_they_are_read_and_keys_after(monkeypatch: pytest.MonkeyPatch) -> None:
    worker_with(monkeypatch, lambda weights_path: None)
    llm, awake = FakeLLM(), FakeLLM()
    reload(llm, Path("new"), asleep=True)
    read = ("reload_weights", {"weights_path": "new"})
    assert llm.told == [["weights"], read, ["kv_cache"], "reset"]
    reload(awake, Path("new"), asleep=False)
    assert awake.told == [read, "reset"]


def test_a_reload_that_is_not_there_or_keeps_keys_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    worker_with(monkeypatch, lambda: None)
    with pytest.raises(UsageError, match="cannot reload weights from a folder"):
        reload(FakeLLM(), Path("new"), asleep=False)
    worker_with(monkeypatch, lambda weights_path: None)
    with pytest.raises(InwardError, match="did not forget the keys"):
        reload(FakeLLM(forgets=False), Path("new"), asleep=False)
