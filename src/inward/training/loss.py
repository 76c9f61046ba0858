"""The objectives, as pure functions of log-probabilities.

Dimensions: B pairs. `policy_chosen_B` is log pi(chosen | prompt) summed over the tokens that count, in nats, and so on.
Every loss comes back per pair, so that the mean over a step does not depend on how the step was cut into micro-batches.

IRPO's NLL is averaged over each sequence first and over the pairs second, as in its paper; TRL's `sft` term is one mean
over all tokens of the micro-batch, which weighs long outputs more. The two agree on one pair.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rewards(policy_B: Tensor, ref_B: Tensor, beta: float) -> Tensor:
    """Return the implicit rewards beta * log(pi / pi_ref) [B] (arXiv 2305.18290, section 5.1)."""
    return beta * (policy_B - ref_B)


def margins(
    policy_chosen_B: Tensor, policy_rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, beta: float
) -> Tensor:
    """Return chosen minus rejected implicit reward [B]; a pair counts as right where this is positive."""
    return rewards(policy_chosen_B, ref_chosen_B, beta) - rewards(policy_rejected_B, ref_rejected_B, beta)


def dpo_loss(
    policy_chosen_B: Tensor, policy_rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, beta: float
) -> Tensor:
    """Return -log sigmoid(margin) [B] (arXiv 2305.18290, equation 7)."""
    return -F.logsigmoid(margins(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B, beta))


def nll(policy_chosen_B: Tensor, chosen_tokens_B: Tensor) -> Tensor:
    """Return each chosen output's negative log-likelihood per token [B], nats; 0 where no token of it counts."""
    return -policy_chosen_B / chosen_tokens_B.masked_fill(chosen_tokens_B == 0, 1)


def irpo_loss(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    beta: float,
    chosen_tokens_B: Tensor,
    nll_weight: float,
) -> Tensor:
    """Return DPO plus `nll_weight` times the length-normalised NLL of the chosen output [B] (arXiv 2404.19733, eq. 1)."""
    dpo_B = dpo_loss(policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B, beta)
    return dpo_B + nll_weight * nll(policy_chosen_B, chosen_tokens_B)
