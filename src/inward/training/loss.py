"""The objectives, as pure functions of log-probabilities.

Dimensions: B pairs. `policy_chosen_B` is log pi(chosen | prompt) in nats, summed over the tokens that count, each times its
weight, and so on; `chosen_tokens_B` adds those weights up: the number of tokens that count where all weights are 0 or 1.
Every loss comes back per pair, so that the mean over a step does not depend on how the step was cut into micro-batches.

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

import torch
import torch.nn.functional as F
from torch import Tensor


def rewards(policy_B: Tensor, ref_B: Tensor, beta: float) -> Tensor:
    """Return the implicit rewards beta * log(pi / pi_ref) [B] (arXiv 2305.18290, section 5.1)."""
    return beta * (policy_B - ref_B)


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


def hinge(margin_B: Tensor) -> Tensor:
    """Return max(0, 1 - m) [B] (SLiC-HF, arXiv 2305.10425; on DPO's margin it is the "hinge-norm" of arXiv 2309.06657)."""
    return torch.relu(1 - margin_B)


def squared(margin_B: Tensor, beta: float) -> Tensor:
    """Return (h - 1 / (2 tau))^2 [B] of the log-ratio difference h = m / beta, tau = beta (arXiv 2310.12036, equation 17)."""
    return (margin_B / beta - 1 / (2 * beta)) ** 2
