"""What the hardware is and which number format suits it; torch is imported only when asked."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from inward.config import Dtype

if TYPE_CHECKING:
    import torch


def device() -> torch.device:
    """Return the CUDA device where there is one, else the processor."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def accelerators() -> int:
    """Return how many CUDA devices this process sees; none where there is no torch that could use them."""
    import torch

    return torch.cuda.device_count()


def device_ids() -> list[str]:
    """Return a name for each accelerator that this process sees, by which CUDA_VISIBLE_DEVICES can give it to another one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    count = accelerators()
    return [str(index) for index in range(count)] if names is None else names[:count]


def named_dtype(name: str) -> torch.dtype:
    """Return the number format of a name such as "bfloat16" or "torch.bfloat16"."""
    import torch

    dtype: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return dtype


def resolve_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """Return the number format: as asked, or for "auto" bf16 where the hardware multiplies in it and fp32 elsewhere."""
    import torch

    if dtype != "auto":
        return named_dtype(dtype)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory that a device has; for the processor what the machine or its control group allows."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return machine  # no control groups here
    return min(machine, int(limit)) if limit.isdigit() else machine


def memory_of_process(processes: int = 1) -> int:
    """Return the bytes that one of `processes` has: those of a GPU where there is one, else its share of the machine's."""
    on = device()
    return total_memory(on) // (processes if on.type == "cpu" else 1)


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still take on a CUDA device, with those that PyTorch keeps for it unused."""
    import torch

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def processors() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def set_up(threads: int | None = None) -> None:
    """Set torch up in a process that computes: its threads, and on GPUs products of float32 matrices by TF32.

    TF32 rounds the factors to ten bits and adds up in float32, several times as fast. `exact_float32` marks the products that
    need all their bits. Processors multiply as before.
    """
    import torch

    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


@contextmanager
def exact_float32() -> Iterator[None]:
    """Multiply float32 matrices in float32 inside the block, whatever `set_up` allows elsewhere."""
    import torch

    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the processor to a device; to a GPU through pinned memory, without waiting for work under way there.

    PyTorch keeps the pinned block until the copy is done, so the tensor may be dropped at once.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


PEAK_READING_S = 0.05
"""Seconds of one reading of a GPU's clock while its peak is measured."""


@functools.cache
def measured_peak(dtype: torch.dtype, device: torch.device, *, size: int | None = None) -> float:
    """Return the operations a second of a square matrix product of `size`, the best of five, measured once a process.

    `size` is 1,024 on a processor unless given, and 8,192 on a GPU, where launching a small product takes longer than the
    product and would make the hardware look slow.
    """
    if device.type == "cuda":
        return _cuda_peak(dtype, device, size or 8192)
    return _processor_peak(dtype, size or 1024)


def _processor_peak(dtype: torch.dtype, size: int) -> float:
    import torch

    left = torch.ones(size, size, dtype=dtype)
    best = 0.0
    for _ in range(6):  # the first one warms up
        began = time.perf_counter()
        torch.mm(left, left)
        best = max(best, 2.0 * size**3 / (time.perf_counter() - began))
    return best


def _cuda_peak(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """Measure by the device's own clock, several products between two readings, for about a third of a second in all.

    The numbers are random: on constant ones GPUs draw less power and clock higher than any training lets them.
    """
    import torch

    generator = torch.Generator(device).manual_seed(0)  # the global random state stays as it is
    left = torch.randn(size, size, device=device, generator=generator).to(dtype)
    product = torch.empty_like(left)

    def seconds(repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(repeats):
            torch.mm(left, left, out=product)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    seconds(1)  # the first one warms up
    repeats = max(1, round(PEAK_READING_S / seconds(1)))
    return max(2.0 * size**3 * repeats / seconds(repeats) for _ in range(5))


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST = 32 * 2**20
"""The largest block that glibc takes from memory it keeps; what is larger always comes from the system."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Have memory that is freed inside the block kept for the next tensor; give it back to the system at the end.

    glibc returns what is free at the end of its heap, and large blocks, at once, and the system zeroes every page that it
    hands out again. A training step on processors frees and takes gigabytes: without this it takes about a third longer
    (docs/log.md). No effect with another C library, or where the environment says what the user wants. After the block glibc
    adjusts its thresholds no more: they stay where its own adjustment ends.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    libc = None if chosen else _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)
        give_back_memory()


def give_back_memory() -> None:
    """Return freed memory to the system, and on GPUs to the device; no effect with another C library than glibc.

    glibc keeps it wherever anything above it is still in use: two gigabytes after training a model of 135M parameters, as much
    as all that the process then uses and more (docs/log.md). The next stage would use it, but until then nobody else can.
    """
    torch = sys.modules.get("torch")  # without it nothing was put on a device
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc, which alone knows these functions."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
