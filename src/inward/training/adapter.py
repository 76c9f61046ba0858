"""A LoRA layer computed in few passes: y = x W' + s (x A') B'.

As peft writes it, the adapter's product is scaled and added in passes over the whole output, forward and backward, and each
is rounded to the model's number format. Here both are the last step of a matrix product, which adds to what it finds. With
bf16 on two cores a layer of 576 x 1536 over 3,649 tokens takes (docs/log.md) ms instead of.

Dimensions: T tokens, I and O the layer's inputs and outputs, R the rank.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fuse(adapted: nn.Module) -> None:
    """Compute every plain LoRA layer of a model this way, in place; others (dropout, quantised, no LoRA) stay as they are."""
    from peft.tuners.lora import Linear

    layers: list[Any] = [module for module in adapted.modules() if type(module) is Linear]
    for layer in layers:
        name, *others = layer.active_adapters
        if _plain(layer, name) and not others:
            layer.forward = partial(_forward, layer, name)


def _plain(module: Any, name: str) -> bool:
    """Say whether a layer is W, A and B and nothing besides."""
    return (
        type(module.base_layer) is nn.Linear
        and not module.base_layer.weight.requires_grad
        and isinstance(module.lora_dropout[name], nn.Identity)
        and not module.lora_bias[name]
        and not module.lora_variant
    )


def _forward(module: Any, name: str, x: Tensor) -> Tensor:
    if module.disable_adapters:
        plain: Tensor = module.base_layer(x)
        return plain
    base, down, up = module.base_layer, module.lora_A[name].weight, module.lora_B[name].weight
    out: Tensor = _Adapted.apply(x.flatten(0, -2), base.weight, base.bias, down, up, module.scaling[name])  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    """y = x W' + b + s (x A') B', where W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scaling: float
    ) -> Tensor:
        inner_TR = x_TI @ down_RI.T
        ctx.save_for_backward(x_TI, weight_OI, down_RI, up_OR, inner_TR)
        ctx.scaling = scaling
        return F.linear(x_TI, weight_OI, bias_O).addmm_(inner_TR, up_OR.T, alpha=scaling)

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI, down_RI, up_OR, inner_TR = ctx.saved_tensors
        grad_inner_TR = (grad_TO @ up_OR).mul_(ctx.scaling)
        grad_x_TI = (grad_TO @ weight_OI).addmm_(grad_inner_TR, down_RI) if ctx.needs_input_grad[0] else None
        grad_up_OR = (grad_TO.T @ inner_TR).mul_(ctx.scaling)
        return grad_x_TI, None, None, grad_inner_TR.T @ x_TI, grad_up_OR, None
