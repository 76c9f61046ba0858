"""Attention over a pack: many sequences in one row, none of which sees another, with a prompt that two may share.

A pack is cut into segments. The tokens of a segment attend causally to their own segment and to all of its prefix, another
segment that comes before it: a completion's prefix is its prompt, so that prompt is computed once for both completions. The
sums are those of ordinary attention, so the gradients are exact.

Three ways to compute it, hooked in as an attention function of `transformers`:

- `blocked` (processors): blocks of queries against the keys that they may see, as plain matrix products, computed again in
  the backward pass instead of being kept. Measured with bf16 on two cores, a layer's forward and backward pass over seven pairs
  of 125 + 2 x 235 tokens takes 37 ms, and 123 ms when gathered (docs/log.md).
- `gathered` (accelerators): each sequence with its prefix as a row of one padded causal `scaled_dot_product_attention`.
- `varlen` (accelerators, in a module of its own): kernels that need no padding, where a trial proves them (`accelerated`).

Dimensions: T tokens of the pack, H query heads, K key/value heads, G = H / K, W width of a head, Q queries of a block, S keys
that they see, R rows, L tokens of the longest row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inward.engines.transformers.shared_prefix import UNSUPPORTED
from inward.hardware import to_device
from inward.models.architectures import UnsupportedAttention
from inward.training.varlen import Compute, Heads, Runs, make_runs, varlen, why_not

log = logging.getLogger(__name__)
NAME = "inward_pack"
BLOCK = 128
"""Queries that are computed at once: of 128, 256 and 512 the fastest or as fast at all lengths tried (two cores, bf16)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) of a pack, and the tokens [prefix_start, prefix_end) that all of them see besides."""

    start: int
    end: int
    prefix_start: int = 0
    prefix_end: int = 0


Rows = tuple[Tensor, Tensor]
"""The tokens of each segment with its prefix [R, L], 0 where a row has ended, and each token's place in R * L [T]."""


@dataclass(frozen=True)
class Layout:
    """How a pack of T tokens is cut. Segments stand in order and leave no token out."""

    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        return self.segments[-1].end

    def positions(self) -> list[int]:
        """Return each token's place in its own sequence."""
        positions: list[int] = []
        for segment in self.segments:
            before = segment.prefix_end - segment.prefix_start
            positions += range(before, before + segment.end - segment.start)
        return positions

    def rows(self, device: torch.device) -> Rows:
        """Return the rows that `gathered` computes, on a device: made and copied once, for all layers and both passes."""
        if device not in self._rows:
            index_RL, place_T = self._make_rows()
            self._rows[device] = to_device(index_RL, device), to_device(place_T, device)
        return self._rows[device]

    def runs(self, device: torch.device) -> Runs:
        """Return the sequences that `varlen` computes, on a device: made and copied once, as `rows`."""
        if device not in self._runs:
            keys_S, query_ends, key_ends = make_runs(self.segments)
            self._runs[device] = to_device(keys_S, device), to_device(query_ends, device), to_device(key_ends, device)
        return self._runs[device]

    @cached_property
    def _rows(self) -> dict[torch.device, Rows]:
        return {}

    @cached_property
    def _runs(self) -> dict[torch.device, Runs]:
        return {}

    def _make_rows(self) -> Rows:
        rows = [[*range(s.prefix_start, s.prefix_end), *range(s.start, s.end)] for s in self.segments]
        longest = max(map(len, rows))
        index_RL = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        places = [
            row * longest + column
            for row, segment in enumerate(self.segments)
            for column in range(segment.prefix_end - segment.prefix_start, len(rows[row]))
        ]
        return index_RL, torch.tensor(places)


def blocked(query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: Layout) -> Tensor:
    """Return the attention of `query` [H, T, W] to `key` [K, T, W] and `value` [K, T, X]: [H, T, X], X mostly being W."""
    result: Tensor = _Blocked.apply(query * scaling, key, value, layout.segments)  # type: ignore[no-untyped-call]
    return result


def gathered(query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: Layout) -> Tensor:
    """The same as `blocked`, by one call over padded rows.

    Keys are repeated for the query heads that share them where numbers have 32 bits: no kernel of PyTorch for those both
    shares keys and spares the matrix of all scores.
    """
    if query.shape[0] != key.shape[0] and query.dtype not in (torch.float16, torch.bfloat16):
        key, value = (states.repeat_interleave(query.shape[0] // states.shape[0], 0) for states in (key, value))
    index_RL, place_T = layout.rows(query.device)
    rows, longest = index_RL.shape

    def spread(states: Tensor) -> Tensor:
        return states.index_select(1, index_RL.flatten()).view(len(states), rows, longest, -1).transpose(0, 1)

    out = F.scaled_dot_product_attention(
        spread(query),
        spread(key),
        spread(value),
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    states: Tensor = out.transpose(0, 1).flatten(1, 2)
    return states.index_select(1, place_T)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within a pack [1, H, T, W]; without a `layout` plain causal attention, whatever the number of rows."""
    from transformers import AttentionInterface

    if attention_mask is not None or any(kwargs.get(name) is not None for name in UNSUPPORTED):
        raise UnsupportedAttention(f"{type(module).__name__} needs a mask, a window, a cap or sinks")
    if layout is None:
        plain = AttentionInterface()["sdpa"]
        result: tuple[Tensor, None] = plain(module, query, key, value, None, scaling=scaling, **kwargs)
        return result
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    compute = blocked if query.device.type == "cpu" else accelerated(heads_of(query[0], key[0], value[0], factor))
    return compute(query[0], key[0], value[0], factor, layout).transpose(0, 1).contiguous().unsqueeze(0), None


def heads_of(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Heads:
    """Return what the choice of a kernel depends on."""
    return Heads(
        device=query.device,
        dtype=query.dtype,
        query=query.shape[0],
        key=key.shape[0],
        width=query.shape[2],
        value_width=value.shape[2],
        scaling=scaling,
    )


@cache
def accelerated(heads: Heads) -> Compute:
    """Return how an accelerator computes packs of such shapes: without padding where a trial proves that. It is said once.

    The first pass of a model asks, which is the trial that decides whether it is trained in packs at all.
    """
    reason = why_not(varlen, gathered, blocked, TRIAL, heads)
    shapes = f"{heads.query} heads of {heads.width} in {str(heads.dtype).removeprefix('torch.')}"
    if reason is None:
        log.info("attention within packs (%s) is computed by variable-length kernels", shapes)
        return varlen
    log.warning("attention within packs (%s) is computed in padded rows: %s", shapes, reason)
    return gathered


TRIAL = Layout(
    (
        Segment(0, 150),
        Segment(150, 350, 0, 150),
        Segment(350, 361, 0, 150),
        Segment(361, 362),
        Segment(362, 490, 361, 362),
        Segment(490, 491, 361, 362),
        Segment(491, 700),
    )
)
"""A pack whose segments and prefixes lie across the kernels' blocks of 64 and 128 and within them, some of them one token."""


class _Blocked(torch.autograd.Function):
    """Blocks of queries, each with a softmax over all the keys it may see. Scores are in the number format of the model.

    Gradients of keys and values, to which several blocks add, are summed in fp32.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment]) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.segments = segments
        out = query.new_empty(*query.shape[:2], value.shape[2])
        for start, end, seen in _blocks(segments):
            weights_KQS = _weights(query, key, start, end, seen)
            out[:, start:end] = _heads(weights_KQS @ _take(value, seen), end - start)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        grad_key = torch.zeros(key.shape, dtype=torch.promote_types(key.dtype, torch.float32), device=key.device)
        grad_value = torch.zeros(value.shape, dtype=grad_key.dtype, device=value.device)
        for start, end, seen in _blocks(ctx.segments):
            weights_KQS = _weights(query, key, start, end, seen)
            grad_KQW = _grouped(grad, key.shape[0], start, end)
            _add(grad_value, seen, weights_KQS.transpose(1, 2) @ grad_KQW)
            grad_weights_KQS = grad_KQW @ _take(value, seen).transpose(1, 2)
            scores_KQS = torch._softmax_backward_data(grad_weights_KQS, weights_KQS, -1, weights_KQS.dtype)
            grad_query[:, start:end] = _heads(scores_KQS @ _take(key, seen), end - start)
            _add(grad_key, seen, scores_KQS.transpose(1, 2) @ _grouped(query, key.shape[0], start, end))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None


Seen = tuple[int, int, int, int]
"""The keys that a block sees: those of its prefix, and those of its segment up to the block's end."""


def _blocks(segments: Sequence[Segment]) -> list[tuple[int, int, Seen]]:
    return [
        (start, end, (s.prefix_start, s.prefix_end, s.start, end))
        for s in segments
        for start in range(s.start, s.end, BLOCK)
        for end in (min(start + BLOCK, s.end),)
    ]


def _weights(query: Tensor, key: Tensor, start: int, end: int, seen: Seen) -> Tensor:
    """Return what each query of a block, scaled, gives to each key it sees [K, G * Q, S]."""
    size, heads = end - start, key.shape[0]
    scores_KQS = _grouped(query, heads, start, end) @ _take(key, seen).transpose(1, 2)
    later_QQ = torch.ones(size, size, dtype=torch.bool, device=query.device).triu_(1)
    scores_KQS.view(heads, -1, size, scores_KQS.shape[2])[..., -size:].masked_fill_(later_QQ, -torch.inf)
    return torch.softmax(scores_KQS, dim=-1)


def _grouped(states: Tensor, heads: int, start: int, end: int) -> Tensor:
    """[H, T, W] -> [K, G * Q, W]: the query heads that share a key head side by side."""
    return states[:, start:end].reshape(heads, -1, states.shape[2])


def _heads(grouped_KQW: Tensor, size: int) -> Tensor:
    """[K, G * Q, W] -> [H, Q, W]"""
    return grouped_KQW.reshape(-1, size, grouped_KQW.shape[2])


def _take(states: Tensor, seen: Seen) -> Tensor:
    """Return the keys or values that a block sees [K, S, W]."""
    prefix_start, prefix_end, start, end = seen
    own = states[:, start:end]
    return own if prefix_start == prefix_end else torch.cat([states[:, prefix_start:prefix_end], own], dim=1)


def _add(total: Tensor, seen: Seen, part_KSW: Tensor) -> None:
    prefix_start, prefix_end, start, end = seen
    shared = prefix_end - prefix_start
    total[:, prefix_start:prefix_end] += part_KSW[:, :shared]
    total[:, start:end] += part_KSW[:, shared:]
