"""What a model gave to each token that it was fed: raw, of its untempered and unfiltered logits over the whole vocabulary.

Tokens are drawn from something else (temperature, top-k, top-p). What the sampler notes is log pi(token | what stands before
it), so that its sums can stand in for those of a forward pass over the finished text. Sums are taken in fp32 whatever the
logits are in.

Dimensions: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inward.engines.engine import Request

CACHED_ROWS = 32
"""Rows of logits whose exponentials are taken at once on a processor: they stay in its cache, which is five times faster."""


def logsumexp(logits_RV: Tensor, *, normalise: bool = False) -> Tensor:
    """Return log sum exp of each row [R] in fp32; with `normalise` also turn the logits into probabilities, in place."""
    sums = []
    for block in torch.split(logits_RV, CACHED_ROWS if logits_RV.device.type == "cpu" else len(logits_RV)):
        top_R1 = block.amax(dim=1, keepdim=True).to(torch.promote_types(block.dtype, torch.float32))
        parts_RV = block.to(top_R1.dtype, copy=True).sub_(top_R1).exp_()  # a copy also of fp32: the logits stay
        total_R1 = parts_RV.sum(dim=1, keepdim=True)
        if normalise:
            block.copy_(parts_RV.div_(total_R1))
        sums.append(total_R1.log_().add_(top_R1)[:, 0].float())
    return torch.cat(sums)


def token_logps(logits_RV: Tensor, tokens_R: Tensor) -> Tensor:
    """Return the log-probability (nats) of one token for each row [R]."""
    return logits_RV.gather(1, tokens_R[:, None])[:, 0].float() - logsumexp(logits_RV)


def opening_logps(model: Any, requests: Sequence[Request], opening: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """Return by request the log-probabilities of the tokens that stand before the first one drawn, which no step feeds.

    All samples of a request share them. Prompts are read one by one: no logits are held but those of the opening.
    """
    if not opening:
        return {request.id: () for request in requests}
    openings = {}
    for request in requests:
        tokens = torch.tensor([[*request.tokens, *opening[:-1]]], device=model.device)
        logits_RV = model(tokens, use_cache=False, logits_to_keep=len(opening)).logits[0]
        openings[request.id] = tuple(token_logps(logits_RV, torch.tensor(opening, device=model.device)).tolist())
    return openings
