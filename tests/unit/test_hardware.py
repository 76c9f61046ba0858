"""The number format that "auto" stands for follows the hardware, a named one is taken as it is; freed memory is given back."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from inward.hardware import (
    device,
    exact_float32,
    give_back_memory,
    kept_memory,
    measured_peak,
    named_dtype,
    resolve_dtype,
    set_up,
    to_device,
)

PROCESSOR = torch.device("cpu")


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ],
)
def test_auto_on_a_processor_is_bf16_where_it_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_dtype("auto", PROCESSOR) is expected
    assert resolve_dtype("float16", PROCESSOR) is torch.float16


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_cuda_does_not_take_emulated_bf16(monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolve_dtype("auto", torch.device("cuda")) is expected


def test_names_are_taken_with_and_without_the_prefix() -> None:
    assert named_dtype("torch.bfloat16") is named_dtype("bfloat16") is torch.bfloat16
    assert device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def precision() -> Iterator[None]:
    before, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    yield
    torch.set_float32_matmul_precision(before)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(("accelerator", "expected"), [(True, "high"), (False, "highest")])
def test_float32_is_multiplied_by_tf32_on_gpus_but_for_what_asks_for_every_bit(
    monkeypatch: pytest.MonkeyPatch, accelerator: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator)
    set_up(threads=1)
    assert torch.get_num_threads() == 1
    assert torch.get_float32_matmul_precision() == expected
    with suppress(ValueError), exact_float32():
        assert torch.get_float32_matmul_precision() == "highest"
        raise ValueError
    assert torch.get_float32_matmul_precision() == expected


def test_a_tensor_on_the_processor_is_not_copied_to_it() -> None:
    tensor = torch.ones(3)
    assert to_device(tensor, PROCESSOR) is tensor


def test_the_peak_is_a_rate_and_measured_once() -> None:
    peak = measured_peak(torch.float32, PROCESSOR, size=64)
    assert 1e6 < peak < 1e16
    assert measured_peak(torch.float32, PROCESSOR, size=64) == peak


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has ways of its own")


@GLIBC
def test_what_is_freed_below_what_is_in_use_is_given_back() -> None:
    blocks = [b"x" * 2**16 for _ in range(2048)]  # 128 MiB, in blocks too small to come from the system one by one
    above = blocks[-1]
    blocks.clear()
    before = resident()
    give_back_memory()
    assert before - resident() > 2**26
    assert len(above) == 2**16


@GLIBC
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_memory_is_kept_in_the_block_and_given_back_at_its_end(ends: str) -> None:
    def spend() -> int:
        tensors = [torch.ones(2**22) for _ in range(16)]  # 16 MiB each
        held = resident()
        tensors.clear()
        return held

    with suppress(ValueError), kept_memory():
        held = spend()
        assert held - resident() < 2**26, "what was freed stays"
        if ends == "badly":
            raise ValueError
    assert held - resident() > 2**27, "and goes at the end"


@GLIBC
def test_what_the_environment_says_of_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("the C library is not asked"))
    with kept_memory():
        pass
