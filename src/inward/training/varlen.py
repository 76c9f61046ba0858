"""Attention over a pack by PyTorch's variable-length kernels (FlashAttention), where a trial proves them right.

Each segment is a sequence of its own: its queries attend to the keys of its prefix and, causally, to its own. Nothing is
padded, and no query is computed twice; only the keys of a prefix are copied to each segment that sees it.

The trial (`why_not`) runs on the device, in the number format and with the numbers of heads at hand. FlexAttention could do the
same and was left out: it has no backward pass on processors, where it could be tested, and it has to be compiled on the user's
machine for every kind of length.

Untested on a GPU: no part of this has run on one. The kernels exist for CUDA alone; tests put a slow function with their
contract in their place.

Dimensions as in `attention`: T tokens, H and K heads, W and X widths; S keys of all segments one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inward.hardware import exact_float32

if TYPE_CHECKING:
    from inward.training.attention import Layout, Segment

Compute = Callable[[Tensor, Tensor, Tensor, float, "Layout"], Tensor]
"""Attention of a query [H, T, W] to a key [K, T, W] and a value [K, T, X] of a pack: [H, T, X]."""
Runs = tuple[Tensor, Tensor, Tensor]
"""The keys of each segment's prefix and its own [S], and where each segment's queries and keys end, 0 first (int32)."""
WORSE = 2.0
"""So many times the present way's rounding error may a kernel have. Two right ways have about the same; a wrong mask, a
hundred times as much."""


def varlen(query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: Layout) -> Tensor:
    """Return the attention within a pack by one call of a variable-length kernel. bf16 and fp16 only."""
    from torch.nn.attention.varlen import varlen_attn

    keys_S, query_ends, key_ends = layout.runs(query.device)
    out_THX = varlen_attn(
        query.transpose(0, 1),
        key.index_select(1, keys_S).transpose(0, 1),
        value.index_select(1, keys_S).transpose(0, 1),
        query_ends,
        key_ends,
        max(segment.end - segment.start for segment in layout.segments),
        max(segment.end - segment.start + segment.prefix_end - segment.prefix_start for segment in layout.segments),
        scale=scaling,
        window_size=(-1, 0),  # causal, the last query seeing the last key
        enable_gqa=query.shape[0] != key.shape[0],
    )
    assert isinstance(out_THX, Tensor), "nothing but the output was asked for"
    return out_THX.transpose(0, 1)


def make_runs(segments: Sequence[Segment]) -> Runs:
    """Return what the kernel is told of a pack."""
    keys = [[*range(s.prefix_start, s.prefix_end), *range(s.start, s.end)] for s in segments]
    own = [s.end - s.start for s in segments]
    return torch.tensor([token for run in keys for token in run]), _ends(own), _ends(map(len, keys))


def _ends(sizes: Iterable[int]) -> Tensor:
    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """What a kernel's results may depend on beside the numbers: where and in which format, heads, widths and the scaling."""

    device: torch.device
    dtype: torch.dtype
    query: int
    key: int
    width: int
    value_width: int
    scaling: float


def why_not(kernel: Compute, present: Compute, exact: Compute, layout: Layout, heads: Heads) -> str | None:
    """Return why a kernel cannot take the place of the `present` way, or None if outputs and all gradients are as good.

    Both are compared with the `exact` way in fp32, on random numbers.
    """
    if heads.width != heads.value_width:
        return "its keys and values have different widths"
    with torch.inference_mode(mode=False), torch.enable_grad():
        numbers = _draw(layout.tokens, heads)
        try:
            tried = _results(kernel, numbers, heads.scaling, layout)
        except torch.OutOfMemoryError:
            raise
        except (ImportError, TypeError, RuntimeError) as error:  # another PyTorch, or no kernel for this device or format
            said = str(error).strip().partition("\n")[0].partition(". ")[0]
            return f"a trial failed with {type(error).__name__}: {said}"
        now = _results(present, numbers, heads.scaling, layout)
        with exact_float32():
            expected = _results(exact, [number.float() for number in numbers], heads.scaling, layout)
    for name, ours, theirs, right in zip(NAMES, tried, now, expected, strict=True):
        distance, bound = _distance(ours, right), max(WORSE * _distance(theirs, right), torch.finfo(heads.dtype).eps)
        if not distance <= bound:  # nor is a NaN
            return f"in a trial {name} differed from fp32's by {distance:.2g} of its size, and {bound:.2g} is rounding"
    return None


NAMES = ("its output", "the gradient of the query", "the gradient of the key", "the gradient of the value")


def _draw(tokens: int, heads: Heads) -> list[Tensor]:
    """Return a query, a key, a value and the gradient of the output. The global random state stays as it is."""
    generator = torch.Generator(heads.device).manual_seed(0)
    shapes = [
        (heads.query, heads.width),
        (heads.key, heads.width),
        (heads.key, heads.value_width),
        (heads.query, heads.value_width),
    ]
    return [
        torch.randn(count, tokens, width, generator=generator, device=heads.device).to(heads.dtype) for count, width in shapes
    ]


def _results(compute: Compute, numbers: Sequence[Tensor], scaling: float, layout: Layout) -> list[Tensor]:
    """Return the output and the gradients of query, key and value."""
    inputs = [number.detach().requires_grad_() for number in numbers[:3]]
    out = compute(inputs[0], inputs[1], inputs[2], scaling, layout)
    return [out.detach(), *torch.autograd.grad(out, inputs, numbers[3])]


def _distance(result: Tensor, right: Tensor) -> float:
    return float((result.float() - right).norm() / right.norm())
