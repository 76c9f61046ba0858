"""Log-probabilities of completions, without ever holding the logits of a prompt, of padding or of a masked token.

The decoder runs over whole rows; only the hidden states that predict a token that counts go through the head, a chunk at
a time, and each chunk's logits are computed again in the backward pass instead of being kept.

Dimensions: R rows, T tokens, N completion tokens that count, D width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inward.errors import UsageError
from inward.training.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 1024


def sequence_logps(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return each row's log-probability [R], fp32 nats: the sum over its tokens, each times its weight."""
    logps_N = token_logps(model, batch)
    sums_R = torch.zeros(len(batch.tokens_RT), dtype=torch.float32, device=logps_N.device)
    return sums_R.index_add(0, batch.row_N, batch.weights_N * logps_N)


def token_logps(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return log pi(token | what stands before it) [N], fp32 nats, for every completion token that counts."""
    hidden_RTD = _hidden(model, batch.tokens_RT)
    hidden_ND = hidden_RTD.flatten(0, 1).index_select(0, batch.where_N)
    chunks = list(zip(torch.split(hidden_ND, CHUNK), torch.split(batch.targets_N, CHUNK), strict=True))
    if len(chunks) > 1 and torch.is_grad_enabled():
        parts = [checkpoint(_chunk_logps, model, hidden, targets, use_reentrant=False) for hidden, targets in chunks]
    else:
        parts = [_chunk_logps(model, hidden, targets) for hidden, targets in chunks]
    return torch.cat(parts)


def check_head(model: PreTrainedModel) -> None:
    """Raise UsageError unless our way from hidden states to logits is this architecture's own.

    Some architectures scale or cap their logits after the head. Those that `_logits` does not know would be trained on
    wrong probabilities; one tiny forward pass tells.
    """
    tokens_RT = torch.arange(1, 9, device=model.device).unsqueeze(0) % model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        theirs = model(input_ids=tokens_RT, use_cache=False).logits.float()
        ours = _logits(model, _hidden(model, tokens_RT)).float()
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
        raise UsageError(
            f"cannot train {type(model).__name__}: it changes its logits in a way that this version does not know. "
            "Train a model of another architecture, or report this one"
        )


def _hidden(model: PreTrainedModel, tokens_RT: Tensor) -> Tensor:
    hidden: Tensor = model.base_model(input_ids=tokens_RT, use_cache=False).last_hidden_state
    return hidden


def _chunk_logps(model: PreTrainedModel, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    return -F.cross_entropy(_logits(model, hidden_ND).float(), targets_N, reduction="none")


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the head and what an architecture does after it: Cohere multiplies, Granite divides, Gemma caps."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits
