"""Linear layers with their weights laid out once as the processor's matrix unit wants them, instead of at every call.

At 128 rows a bf16 product spends about a fifth of its time on that rearrangement. oneDNN offers to do it beforehand; torch
uses the offer in compiled models, through the operators below, which need no compiler themselves. Both are private names,
so a torch without them is served by the ordinary layers.
"""

from __future__ import annotations

from functools import partial

import torch

MAX_COPIED_BYTES = 2 * 2**30
"""Bytes of weights up to which a second, rearranged copy is worth its memory."""


def lay_out_linears(model: torch.nn.Module, rows: int) -> int:
    """Rearrange the weights of every plain linear layer for `rows` rows; return how many (0 where it cannot help).

    Only for bf16 on a processor. The model computes the same products and can no longer be trained.
    """
    layers = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
    size = sum(layer.weight.nbytes for layer in layers)
    fits = all(layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "cpu" for layer in layers)
    offered = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    if not (fits and offered and size <= MAX_COPIED_BYTES and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return 0
    for layer in layers:
        reordered = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
        layer.forward = partial(_linear, reordered, layer.bias)  # type: ignore[method-assign]
    return len(layers)


def _linear(reordered: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, reordered, bias, "none", [], "")
    return result
