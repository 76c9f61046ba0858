"""AdamW over fp32 master weights, and the learning rate as a function of the step.

At learning rates near 1e-6 an update is far below a bf16 weight's last digit and would be lost. So the weights that are
trained live in fp32, with fp32 moments (or, by bitsandbytes, 8-bit ones); forward and backward run on a bf16 copy that is
rounded from them after each step (measured on two cores, twice as fast as fp32 weights under autocast). Gradients of
micro-batches add up in fp32, each as soon as it is there. So a bf16 weight takes 18 bytes: 2 itself, 4 its master, 4 its
gradient and 8 its moments (2 in 8 bits).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from inward.config import TrainingSettings
from inward.errors import MissingExtraError


@dataclass(frozen=True, slots=True)
class Weights:
    """The trained weights by name: `working` is what the model computes with, `master` their fp32 originals.

    The two are the same tensors where the model works in fp32, and where they are cut over processes (`sharding`).
    """

    names: tuple[str, ...]
    working: tuple[nn.Parameter, ...]
    master: tuple[nn.Parameter, ...]

    def masters(self) -> dict[str, Tensor]:
        return {name: master.detach() for name, master in zip(self.names, self.master, strict=True)}


def make_weights(model: nn.Module, originals: Mapping[str, Tensor]) -> Weights:
    """Pair a model's trainable parameters with masters taken from `originals`, the same parameters as they are stored.

    From here on a backward pass leaves the gradients in the masters.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    masters = [
        parameter if parameter.dtype == torch.float32 else nn.Parameter(_master(originals[name], parameter.device))
        for name, parameter in trained
    ]
    weights = Weights(tuple(name for name, _ in trained), tuple(parameter for _, parameter in trained), tuple(masters))
    _collect_gradients(weights)
    return weights


def _master(original: Tensor, device: torch.device) -> Tensor:
    return original.detach().to(device, torch.float32, copy=True)


def _collect_gradients(weights: Weights) -> None:
    """Have every gradient of a working weight added to its master's, in fp32, and freed as soon as a backward pass has made it.

    So gradients stand in both number formats for one weight at a time, and not for the whole model.
    """
    for working, master in zip(weights.working, weights.master, strict=True):
        if working is not master:
            working.register_post_accumulate_grad_hook(partial(_collect, master))  # type: ignore[no-untyped-call]


def _collect(master: nn.Parameter, working: Tensor) -> None:
    assert working.grad is not None
    if master.grad is None:
        master.grad = working.grad.float()
    else:
        master.grad.add_(working.grad)
    working.grad = None


@torch.no_grad()
def round_to_working(weights: Weights) -> None:
    """Set the working weights to the masters, rounded."""
    for working, master in zip(weights.working, weights.master, strict=True):
        if working is not master:
            working.copy_(master)


def make_optimiser(weights: Weights, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return AdamW over the masters. Biases and norms (fewer than two dimensions) are not decayed.

    "adamw_8bit" keeps the moments of weights of 4,096 numbers or more in blocks of 256, each with a scale of its own
    (arXiv 2110.02861). Raises MissingExtraError without the `bitsandbytes` extra.
    """
    groups = [
        {"params": [p for p in weights.master if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights.master if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise MissingExtraError("bitsandbytes", "bitsandbytes") from None
    eight_bit: torch.optim.Optimizer = AdamW8bit(groups, lr=settings.learning_rate)
    return eight_bit


def learning_rate(step: int, total: int, settings: TrainingSettings) -> float:
    """Return the rate of step `step`, counted from 0, of `total`.

    It rises linearly to the full rate over the first `warmup` share of the steps. Unlike the usual schedulers it is never
    zero: the first and the last step are not spent on nothing.
    """
    warmup = math.ceil(settings.warmup * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / (total - warmup)
    if settings.schedule == "linear":
        return settings.learning_rate * (1 - progress)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.learning_rate
