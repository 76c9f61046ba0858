"""From a micro-batch's sums to its loss: the objective that the settings ask for, and what is worth knowing beside it.

Pure in tensors; what the objectives are is in `loss`. Dimensions: B pairs, R = 2B rows (all chosen, then all rejected).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inward.config import TrainingSettings
from inward.training import loss as objectives
from inward.training.examples import Example

PER_TOKEN = ("ipo", "dpo_norm", "simpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What a loss is made of. Log-probabilities are weighted sums over a sequence's tokens, in nats; tokens add up weights.

    `gap_B` is the judge's score gap, 0 where there is none. An objective without a reference reads none of its sums.
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
    """Return the loss of each pair [B], with its graph, and the columns [B] that `metrics.PairTerms` names.

    `pair_loss` is the loss without IRPO's NLL; `log_ratio` is the mean of log(policy / reference) over the tokens that count
    in both outputs, 0 where there is no reference.
    """
    chosen_B, rejected_B = _rewards(settings, sums)
    pair_B = _pair_loss(settings, chosen_B - rejected_B, sums.gap_B)
    nll_B = objectives.nll(sums.policy_chosen_B, sums.chosen_tokens_B)
    loss_B = pair_B
    if settings.objective == "irpo":
        loss_B = pair_B + (1.0 if settings.nll_weight is None else settings.nll_weight) * nll_B
    columns = {
        "loss": loss_B,
        "pair_loss": pair_B,
        "nll": nll_B,
        "chosen_reward": chosen_B,
        "rejected_reward": rejected_B,
        "chosen_logp": sums.policy_chosen_B,
        "rejected_logp": sums.policy_rejected_B,
        "log_ratio": _log_ratio(settings, sums),
    }
    return loss_B, columns


def _rewards(settings: TrainingSettings, sums: Sums) -> tuple[Tensor, Tensor]:
    policy = (sums.policy_chosen_B, sums.policy_rejected_B)
    reference = (sums.ref_chosen_B, sums.ref_rejected_B)
    if not settings.needs_reference:
        reference = (torch.zeros_like(policy[0]), torch.zeros_like(policy[1]))
    chosen_B, rejected_B = (objectives.rewards(p, r, settings.beta) for p, r in zip(policy, reference, strict=True))
    if settings.objective in PER_TOKEN:
        chosen_B = objectives.per_token(chosen_B, sums.chosen_tokens_B)
        rejected_B = objectives.per_token(rejected_B, sums.rejected_tokens_B)
    return chosen_B, rejected_B


def _pair_loss(settings: TrainingSettings, margin_B: Tensor, gap_B: Tensor) -> Tensor:
    if settings.objective == "ipo":
        return objectives.squared(margin_B, settings.beta)
    if settings.gap_offset:
        margin_B = margin_B - objectives.offsets(gap_B, settings.gap_offset)
    if settings.objective == "hinge":
        return objectives.hinge(margin_B)
    if settings.objective == "simpo":
        margin_B = margin_B - (1.0 if settings.gamma is None else settings.gamma)
    return objectives.logistic(margin_B, settings.label_smoothing)


def _log_ratio(settings: TrainingSettings, sums: Sums) -> Tensor:
    if not settings.needs_reference:
        return torch.zeros_like(sums.policy_chosen_B)
    policy_B, ref_B = sums.policy_chosen_B + sums.policy_rejected_B, sums.ref_chosen_B + sums.ref_rejected_B
    return objectives.per_token(policy_B - ref_B, sums.chosen_tokens_B + sums.rejected_tokens_B)
