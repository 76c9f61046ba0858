"""Log-probabilities of completions, without ever holding the logits of a prompt, of padding or of a masked token.

The decoder runs over the whole micro-batch; only the hidden states that predict a token that counts go through the head, a
chunk at a time, and each chunk's logits are computed again in the backward pass instead of being kept. So the memory that
logits take is that of one chunk, `chunk_logits` numbers and one copy in fp32, whatever the length and the vocabulary.

Dimensions: T token positions, N completion tokens that count, R sequences, D width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inward.engines.transformers.logps import logsumexp
from inward.errors import UsageError
from inward.hardware import exact_float32
from inward.training.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_LOGITS = 2**26
"""Logits that are held at once, in the model's number format: 128 MiB in bf16, 1,365 tokens at a vocabulary of 49,152."""
CHUNK_LOGITS_CPU = 2**24 - 2**16
"""The same on a processor: just below 32 MiB in bf16, the most that a C library lays out in memory it has (`kept_memory`)."""
HEAD_ROWS = 4096
"""Rows of the head whose gradient is added up at once on a processor: its fp32 copy is small enough to be kept memory."""


def chunk_logits(device: torch.device) -> int:
    return CHUNK_LOGITS_CPU if device.type == "cpu" else CHUNK_LOGITS


def sequence_logps(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return each sequence's log-probability [R], fp32 nats: the sum over its tokens, each times its weight."""
    logps_N = token_logps(model, batch)
    sums_R = torch.zeros(len(batch.counts_R), dtype=torch.float32, device=logps_N.device)
    return sums_R.index_add(0, batch.sequence_N, batch.weights_N * logps_N)


def token_logps(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return log pi(token | what stands before it) [N], fp32 nats, for every completion token that counts."""
    hidden_ND = completion_states(model, batch)
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and not getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        return _apply(_LinearHead, hidden_ND, batch.targets_N, head.weight, head.bias, _factor(model))
    weights = [parameter for parameter in head.parameters() if parameter.requires_grad]
    return _apply(_AnyHead, model, hidden_ND, batch.targets_N, *weights)


def completion_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the hidden states [N, D] that predict the completion tokens that count."""
    extra = {} if batch.layout is None else {"position_ids": batch.positions, "layout": batch.layout}
    return _hidden(model, batch.tokens, **extra).flatten(0, 1).index_select(0, batch.where_N)


def body_of(model: PreTrainedModel) -> Any:
    """Return what makes hidden states: the model without its head."""
    return getattr(model, "model", model) if model.base_model is model else model.base_model


def check_head(model: PreTrainedModel) -> None:
    """Raise UsageError unless our way from hidden states to logits is this architecture's own (`why_not_our_head`)."""
    if reason := why_not_our_head(model):
        raise UsageError(
            f"cannot train {type(model).__name__}: {reason}. Train a model of another architecture, or report this one"
        )


def why_not_our_head(model: PreTrainedModel) -> str | None:
    """Return why our way from hidden states to logits is not this architecture's own, or None.

    Some architectures scale or cap their logits after the head. Those that `_logits` does not know would be trained on
    wrong probabilities; one tiny forward pass tells. Some cannot be parted into a body and a head at all.
    """
    if body_of(model) is model or model.get_output_embeddings() is None:
        return "it cannot be parted into a body and a head"
    tokens_RT = torch.arange(1, 9, device=model.device).unsqueeze(0) % model.get_input_embeddings().num_embeddings
    try:
        with torch.no_grad():
            theirs = model(input_ids=tokens_RT, use_cache=False).logits.float()
            ours = _logits(model, _hidden(model, tokens_RT)).float()
    except (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        return f"a forward pass failed with {type(error).__name__}: {error}"
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
        return "it changes its logits in a way that this version does not know"
    return None


class _LinearHead(torch.autograd.Function):
    """Log-probabilities of targets [N] from hidden states [N, D] and a head [V, D], with a gradient by hand.

    With z = factor * (h W' + b) and p = softmax(z): d logp / dz = onehot - p. So for an incoming gradient g, with
    u = factor * g, dh = u (W[target] - p W) and dW = onehot' (u h) - p' (u h), and only p has the size of the logits.
    Gradients of the head add up in fp32. A frozen head needs no more than W[target] - p W, whatever g is: it is taken at once
    from the logits of the forward pass, and they are never computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor, bias_V: Tensor | None, factor: float
    ) -> Tensor:
        frozen = not any(ctx.needs_input_grad[2:4])
        slope_ND = hidden_ND.new_empty(hidden_ND.shape, dtype=_sums(hidden_ND)) if frozen and ctx.needs_input_grad[0] else None
        logps_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        for chunk in _chunks(targets_N, len(weight_VD)):
            targets = targets_N[chunk]
            logits_NV = _linear_logits(hidden_ND[chunk], weight_VD, bias_V, factor)
            found_N = logits_NV.gather(1, targets[:, None])[:, 0].float()
            logps_N[chunk] = found_N - logsumexp(logits_NV, normalise=slope_ND is not None)
            if slope_ND is not None:
                slope_ND[chunk] = _slope(logits_NV, targets, weight_VD)
        ctx.save_for_backward(*((slope_ND,) if frozen else (hidden_ND, targets_N, weight_VD, bias_V)))
        ctx.frozen, ctx.factor, ctx.dtype = frozen, factor, hidden_ND.dtype
        return logps_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.frozen:
            (slope_ND,) = ctx.saved_tensors
            return (ctx.factor * grad_N[:, None] * slope_ND).to(ctx.dtype), None, None, None, None
        hidden_ND, targets_N, weight_VD, bias_V = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND)
        sums = {"dtype": _sums(weight_VD), "device": weight_VD.device}
        total_VD = torch.zeros(weight_VD.shape, **sums)
        total_V = torch.zeros(len(weight_VD), **sums) if bias_V is not None else None
        for chunk in _chunks(targets_N, len(weight_VD)):
            hidden, targets, scale_N1 = hidden_ND[chunk], targets_N[chunk], ctx.factor * grad_N[chunk, None].to(sums["dtype"])
            weights_NV = _linear_logits(hidden, weight_VD, bias_V, ctx.factor)
            logsumexp(weights_NV, normalise=True)
            grad_hidden_ND[chunk] = (scale_N1 * _slope(weights_NV, targets, weight_VD)).to(hidden.dtype)
            scaled_ND = scale_N1 * hidden
            for part in _slices(len(total_VD), HEAD_ROWS if total_VD.device.type == "cpu" else len(total_VD)):
                total_VD[part] -= weights_NV[:, part].T @ scaled_ND.to(hidden.dtype)
            total_VD.index_add_(0, targets, scaled_ND)
            if total_V is not None:
                total_V -= (weights_NV * scale_N1).sum(0)
                total_V.index_add_(0, targets, scale_N1[:, 0])
        grad_V = None if total_V is None or bias_V is None or not ctx.needs_input_grad[3] else total_V.to(bias_V.dtype)
        return grad_hidden_ND, None, total_VD.to(weight_VD.dtype), grad_V, None


class _AnyHead(torch.autograd.Function):
    """The same for a head of any kind (adapted, capped): each chunk is differentiated by autograd, one after the other."""

    @staticmethod
    def forward(ctx: Any, model: PreTrainedModel, hidden_ND: Tensor, targets_N: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_ND, targets_N)
        ctx.model, ctx.weights = model, weights
        ctx.chunks = _chunks(targets_N, model.config.get_text_config().vocab_size)
        parts = [_chunk_logps(model, hidden_ND[chunk], targets_N[chunk]) for chunk in ctx.chunks]
        return torch.cat(parts) if parts else hidden_ND.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, targets_N = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND)
        totals = [torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) for weight in ctx.weights]
        for chunk in ctx.chunks:
            with torch.enable_grad():
                hidden = hidden_ND[chunk].detach().requires_grad_()
                logps = _chunk_logps(ctx.model, hidden, targets_N[chunk])
            grad_hidden_ND[chunk], *grads = torch.autograd.grad(logps, [hidden, *ctx.weights], grad_N[chunk])
            for total, grad in zip(totals, grads, strict=True):
                total += grad
        return (None, grad_hidden_ND, None, *(t.to(w.dtype) for t, w in zip(totals, ctx.weights, strict=True)))


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    logps_N: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return logps_N


def _chunks(targets_N: Tensor, vocabulary: int) -> list[slice]:
    return _slices(len(targets_N), max(1, chunk_logits(targets_N.device) // vocabulary))


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _sums(tensor: Tensor) -> torch.dtype:
    """Return the number format in which many of a tensor's numbers are added up."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _slope(weights_NV: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
    """Return W[target] - p W [N, D]: what a log-probability gains where the hidden state grows, but for the factor."""
    return weight_VD[targets_N].to(_sums(weight_VD)) - weights_NV @ weight_VD


def _linear_logits(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, factor: float) -> Tensor:
    """Return logits [N, V]. In float32 they keep all their bits: their rounding adds up over the tokens of a sequence."""
    with exact_float32():
        return _scaled(F.linear(hidden_ND, weight_VD, bias_V), factor)


def _scaled(logits: Tensor, factor: float) -> Tensor:
    return logits if factor == 1.0 else logits * factor


def _factor(model: PreTrainedModel) -> float:
    """Return what an architecture multiplies its logits by: Cohere multiplies, Granite divides."""
    config = model.config.get_text_config()
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def _hidden(model: PreTrainedModel, tokens: Tensor, **extra: Any) -> Tensor:
    hidden: Tensor = body_of(model)(input_ids=tokens, use_cache=False, **extra).last_hidden_state
    return hidden


def _chunk_logps(model: PreTrainedModel, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    return -F.cross_entropy(_logits(model, hidden_ND).float(), targets_N, reduction="none")


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the head and what an architecture does after it; Gemma caps."""
    with exact_float32():
        logits = _scaled(model.get_output_embeddings()(hidden), _factor(model))
    if cap := getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits
