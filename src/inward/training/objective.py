"""From a micro-batch's sums to its loss: the objective that the settings ask for, and what is worth knowing beside it.

Pure in tensors. Dimensions: B pairs, R = 2B rows (all chosen, then all rejected).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inward.config import TrainingSettings
from inward.training import loss as objectives
from inward.training.examples import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What a loss is made of. Log-probabilities are weighted sums over a sequence's tokens, in nats; tokens add up weights.

    `gap_B` is the judge's score gap, 0 where there is none.
    """

    policy_chosen_B: Tensor
    policy_rejected_B: Tensor
    ref_chosen_B: Tensor
    ref_rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    gap_B: Tensor


def pair_sums(examples: Sequence[Example], policy_R: Tensor, reference_R: Tensor, counts_R: Tensor) -> Sums:
    """Lay out a micro-batch's rows by pair, in the order of `examples`."""
    (policy_chosen_B, policy_rejected_B), (ref_chosen_B, ref_rejected_B) = policy_R.chunk(2), reference_R.chunk(2)
    chosen_tokens_B, rejected_tokens_B = counts_R.chunk(2)
    return Sums(
        policy_chosen_B=policy_chosen_B,
        policy_rejected_B=policy_rejected_B,
        ref_chosen_B=ref_chosen_B,
        ref_rejected_B=ref_rejected_B,
        chosen_tokens_B=chosen_tokens_B,
        rejected_tokens_B=rejected_tokens_B,
        gap_B=torch.tensor([example.gap or 0.0 for example in examples], dtype=policy_R.dtype, device=policy_R.device),
    )


def losses(settings: TrainingSettings, sums: Sums) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of each pair [B], with its graph, and the columns [B] that `metrics.PairTerms` names."""
    logps = (sums.policy_chosen_B, sums.policy_rejected_B, sums.ref_chosen_B, sums.ref_rejected_B)
    dpo_B = objectives.dpo_loss(*logps, settings.beta)
    if settings.objective == "irpo":
        weight = 1.0 if settings.nll_weight is None else settings.nll_weight
        loss_B = objectives.irpo_loss(*logps, settings.beta, sums.chosen_tokens_B, weight)
    else:
        loss_B = dpo_B
    columns = {
        "loss": loss_B,
        "dpo_loss": dpo_B,
        "nll": objectives.nll(sums.policy_chosen_B, sums.chosen_tokens_B),
        "chosen_reward": objectives.rewards(sums.policy_chosen_B, sums.ref_chosen_B, settings.beta),
        "rejected_reward": objectives.rewards(sums.policy_rejected_B, sums.ref_rejected_B, settings.beta),
        "chosen_logp": sums.policy_chosen_B,
        "rejected_logp": sums.policy_rejected_B,
    }
    return loss_B, columns
