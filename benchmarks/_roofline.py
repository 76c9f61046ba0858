"""What the machine could do at best, measured, and what sampling must do at least, counted.

Operations are those of the linear layers and of attention, two to a multiplication with its addition. Bytes are those of the
weights, once a step, and of the keys and values that a step reads, a prompt's once for all its samples. Neither counts what an
engine wastes: padding, rows that have finished, elementwise passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least that a call of sampling takes. A machine of `operations_per_second` and `bytes_per_second` is given."""

    operations: float
    bytes: float

    def shares(self, seconds: float, operations_per_second: float, bytes_per_second: float) -> dict[str, Any]:
        """Return which parts of the two peaks were reached, and which of them binds."""
        arithmetic = self.operations / operations_per_second / seconds
        bandwidth = self.bytes / bytes_per_second / seconds
        return {
            "bound": "arithmetic" if arithmetic >= bandwidth else "bandwidth",
            "roofline_share": round(max(arithmetic, bandwidth), 3),
            "arithmetic_share": round(arithmetic, 3),
            "bandwidth_share": round(bandwidth, 3),
        }


def sampling_floor(model: Any, prompts: Sequence[int], drawn: Sequence[Sequence[int]]) -> Floor:
    """Count for prompts of so many tokens each, and samples of so many tokens each for each of them, all drawn side by side."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight
    linears = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer.weight is not head]
    body = sum(weight.numel() for weight in linears)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pair = 4 * config.num_attention_heads * width * config.num_hidden_layers  # operations of a query with a key and its value
    token = 2 * config.num_key_value_heads * width * config.num_hidden_layers * head.element_size()  # bytes of a key and value
    samples = [(prompt, length) for prompt, lengths in zip(prompts, drawn, strict=True) for length in lengths]
    tokens = sum(length for _, length in samples)
    operations = 2.0 * body * (sum(prompts) + tokens) + 2.0 * head.numel() * tokens
    operations += pair * (sum(n * (n + 1) / 2 for n in prompts) + sum(n * s + s * (s + 1) / 2 for n, s in samples))
    steps = max(length for _, length in samples)
    read = steps * (body + head.numel()) * head.element_size()
    read += token * sum(prompt * max(lengths) for prompt, lengths in zip(prompts, drawn, strict=True))
    read += token * sum(length * (length + 1) / 2 for _, length in samples)
    return Floor(operations=operations, bytes=float(read))


def operations_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """Return the best rate of square matrix products: over several sizes, since the largest is not the fastest everywhere."""
    best = 0.0
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = max(best, 2 * size**3 / _fastest(lambda left=left, right=right: left @ right, device))
    return best


def bytes_per_second(device: torch.device) -> float:
    """Return the rate at which memory is copied, bytes read and bytes written together, far beyond all caches."""
    source = torch.zeros(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device)


def _fastest(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    work()
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best
