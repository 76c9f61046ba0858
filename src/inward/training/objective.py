"""From a micro-batch's sums to its loss: the objective that the settings ask for, and what is worth knowing beside it.

Pure in tensors; what the objectives are is in `loss`. Dimensions: B pairs, R = 2B rows (all chosen, then all rejected).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inward.config import TrainingSettings
from inward.config.objectives import OBJECTIVES
from inward.functions import named
from inward.hardware import to_device
from inward.training.examples import Example
from inward.training.loss import ObjectiveFunction, Sums, nll, per_token


def objective_function(name: str) -> ObjectiveFunction:
    """Return the function of an objective in the table."""
    function: ObjectiveFunction = named(OBJECTIVES[name].function)
    return function


def pair_sums(examples: Sequence[Example], policy_R: Tensor, reference_R: Tensor, counts_R: Tensor) -> Sums:
    """Lay out a micro-batch's rows by pair, in the order of `examples`."""
    (policy_chosen_B, policy_rejected_B), (ref_chosen_B, ref_rejected_B) = policy_R.chunk(2), reference_R.chunk(2)
    chosen_tokens_B, rejected_tokens_B = counts_R.chunk(2)
    gap_B = torch.tensor([example.gap or 0.0 for example in examples], dtype=policy_R.dtype)
    return Sums(
        policy_chosen_B=policy_chosen_B,
        policy_rejected_B=policy_rejected_B,
        ref_chosen_B=ref_chosen_B,
        ref_rejected_B=ref_rejected_B,
        chosen_tokens_B=chosen_tokens_B,
        rejected_tokens_B=rejected_tokens_B,
        gap_B=to_device(gap_B, policy_R.device),
    )


def losses(settings: TrainingSettings, sums: Sums) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of each pair [B], with its graph, and the columns [B] that `metrics.PairTerms` names.

    `pair_loss` is the loss without IRPO's NLL; `log_ratio` is the mean of log(policy / reference) over the tokens that count
    in both outputs, 0 where there is no reference.
    """
    result = objective_function(settings.objective)(sums, settings)
    columns = {
        "loss": result.loss_B,
        "pair_loss": result.pair_loss_B,
        "nll": nll(sums.policy_chosen_B, sums.chosen_tokens_B),
        "chosen_reward": result.chosen_reward_B,
        "rejected_reward": result.rejected_reward_B,
        "chosen_logp": sums.policy_chosen_B,
        "rejected_logp": sums.policy_rejected_B,
        "log_ratio": _log_ratio(settings, sums),
    }
    return result.loss_B, columns


def _log_ratio(settings: TrainingSettings, sums: Sums) -> Tensor:
    if not settings.needs_reference:
        return torch.zeros_like(sums.policy_chosen_B)
    policy_B, ref_B = sums.policy_chosen_B + sums.policy_rejected_B, sums.ref_chosen_B + sums.ref_rejected_B
    return per_token(policy_B - ref_B, sums.chosen_tokens_B + sums.rejected_tokens_B)
