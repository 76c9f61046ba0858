"""The objectives, as pure functions of log-probabilities.

Dimensions: B pairs. Every loss comes back per pair, so that the mean over a step does not depend on how the step was cut into
micro-batches. A recipe names these functions through the table in `inward.config.objectives`, whose tests hold each of them
against its paper.

Each objective is made of two implicit rewards (of the chosen and of the rejected output) and a loss of their margin:

| objective | reward of an output of n tokens | loss of the margin m | source |
|---|---|---|---|
| dpo | beta log(pi / ref) | -log sigmoid(m) | arXiv 2305.18290, equation 7 |
| irpo | beta log(pi / ref) | -log sigmoid(m) - alpha log(pi(chosen)) / n | arXiv 2404.19733, equation 1 |
| dpo_norm | beta log(pi / ref) / n | -log sigmoid(m) | arXiv 2411.15124, section 5 |
| simpo | beta log(pi) / n | -log sigmoid(m - gamma) | arXiv 2405.14734, equation 6 |
| hinge | beta log(pi / ref) | max(0, 1 - m) | arXiv 2309.06657 |
| ipo | beta log(pi / ref) / n | (m / beta - 1 / (2 beta))^2 | arXiv 2310.12036, equation 17 |

Deviations from the sources:
- IRPO's NLL is averaged over each sequence first and over the pairs second, as in its paper; TRL's `sft` term is one mean
  over all tokens of the micro-batch, which weighs long outputs more. The two agree on one pair.
- IPO's paper compares sums over tokens, which makes its target depend on length. Its authors told TRL's that their own figures
  come from means, and TRL compares means: so do we.
- `hinge` is SLiC's calibration loss, with unit margin, on DPO's margin instead of the bare log-probabilities.
- Label smoothing is conservative DPO's (a share of the labels is taken to be wrong), not robust DPO's debiased form, which is
  TRL's `robust`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from inward.config import TrainingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What a loss is made of. `policy_chosen_B` is log pi(chosen | prompt) in nats, summed over tokens, each times its weight.

    `chosen_tokens_B` adds those weights up: the number of tokens that count where all weights are 0 or 1. `gap_B` is the
    judge's score gap, 0 where there is none. An objective without a reference reads none of its sums.
    """

    policy_chosen_B: Tensor
    policy_rejected_B: Tensor
    ref_chosen_B: Tensor
    ref_rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    gap_B: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLoss:
    """What an objective makes of each pair [B]: two implicit rewards, the loss of their margin, and the loss that is trained.

    `pair_loss_B` and `loss_B` differ where something is added to the loss of the margin, as in IRPO.
    """

    chosen_reward_B: Tensor
    rejected_reward_B: Tensor
    pair_loss_B: Tensor
    loss_B: Tensor


ObjectiveFunction = Callable[[Sums, TrainingSettings], PairLoss]


def dpo(sums: Sums, settings: TrainingSettings) -> PairLoss:
    return _of_margin(log_ratios(sums, settings.beta), sums, settings)


def irpo(sums: Sums, settings: TrainingSettings) -> PairLoss:
    plain = dpo(sums, settings)
    weight = 1.0 if settings.nll_weight is None else settings.nll_weight
    return replace(plain, loss_B=plain.pair_loss_B + weight * nll(sums.policy_chosen_B, sums.chosen_tokens_B))


def dpo_norm(sums: Sums, settings: TrainingSettings) -> PairLoss:
    return _of_margin(means(log_ratios(sums, settings.beta), sums), sums, settings)


def simpo(sums: Sums, settings: TrainingSettings) -> PairLoss:
    chosen_B, rejected_B = means((settings.beta * sums.policy_chosen_B, settings.beta * sums.policy_rejected_B), sums)
    target = 1.0 if settings.gamma is None else settings.gamma
    pair_B = logistic(_margin(chosen_B, rejected_B, sums, settings) - target, settings.label_smoothing)
    return _pair_loss(chosen_B, rejected_B, pair_B)


def hinge(sums: Sums, settings: TrainingSettings) -> PairLoss:
    """SLiC-HF's loss (arXiv 2305.10425) on DPO's margin: the "hinge-norm" of arXiv 2309.06657."""
    chosen_B, rejected_B = log_ratios(sums, settings.beta)
    return _pair_loss(chosen_B, rejected_B, torch.relu(1 - _margin(chosen_B, rejected_B, sums, settings)))


def ipo(sums: Sums, settings: TrainingSettings) -> PairLoss:
    """With tau = beta and the log-ratio difference h = m / beta: (h - 1 / (2 tau))^2."""
    chosen_B, rejected_B = means(log_ratios(sums, settings.beta), sums)
    pair_B = ((chosen_B - rejected_B) / settings.beta - 1 / (2 * settings.beta)) ** 2
    return _pair_loss(chosen_B, rejected_B, pair_B)


Rewards = tuple[Tensor, Tensor]
"""The implicit rewards of the chosen and of the rejected outputs, [B] each."""


def log_ratios(sums: Sums, beta: float) -> Rewards:
    """Return beta * log(pi / pi_ref) of both outputs (arXiv 2305.18290, section 5.1)."""
    return beta * (sums.policy_chosen_B - sums.ref_chosen_B), beta * (sums.policy_rejected_B - sums.ref_rejected_B)


def means(rewards: Rewards, sums: Sums) -> Rewards:
    """Return rewards per token that counts."""
    return per_token(rewards[0], sums.chosen_tokens_B), per_token(rewards[1], sums.rejected_tokens_B)


def per_token(sums_B: Tensor, tokens_B: Tensor) -> Tensor:
    """Return means over tokens [B]; 0 where no token counts."""
    return sums_B / tokens_B.masked_fill(tokens_B == 0, 1)


def nll(policy_chosen_B: Tensor, chosen_tokens_B: Tensor) -> Tensor:
    """Return each chosen output's negative log-likelihood per token [B], nats; 0 where no token of it counts."""
    return -per_token(policy_chosen_B, chosen_tokens_B)


def offsets(gap_B: Tensor, gap_offset: float) -> Tensor:
    """Return by how much the judge's score gap raises the margin that is asked for [B] (ODPO, arXiv 2402.10571).

    The gap itself is ODPO's increasing function of the gap. A negative gap (length control chose what the judge liked less)
    and no gap at all (a rejected output that broke the format) give 0: the plain objective.
    """
    return gap_offset * gap_B.clamp(min=0)


def logistic(margin_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return -(1 - e) log sigmoid(m) - e log sigmoid(-m) [B].

    With e = 0 it is DPO's (arXiv 2305.18290, equation 7); else conservative DPO's (Mitchell 2023, "A note on DPO with noisy
    preferences"), whose margin is best at log((1 - e) / e) instead of infinity.
    """
    if label_smoothing == 0.0:
        return -F.logsigmoid(margin_B)
    return -(1 - label_smoothing) * F.logsigmoid(margin_B) - label_smoothing * F.logsigmoid(-margin_B)


def _of_margin(rewards: Rewards, sums: Sums, settings: TrainingSettings) -> PairLoss:
    return _pair_loss(*rewards, logistic(_margin(*rewards, sums, settings), settings.label_smoothing))


def _margin(chosen_B: Tensor, rejected_B: Tensor, sums: Sums, settings: TrainingSettings) -> Tensor:
    """Return the margin that the loss sees, lowered by what `gap_offset` asks for beyond it."""
    margin_B = chosen_B - rejected_B
    return margin_B - offsets(sums.gap_B, settings.gap_offset) if settings.gap_offset else margin_B


def _pair_loss(chosen_B: Tensor, rejected_B: Tensor, pair_B: Tensor) -> PairLoss:
    return PairLoss(chosen_reward_B=chosen_B, rejected_reward_B=rejected_B, pair_loss_B=pair_B, loss_B=pair_B)
