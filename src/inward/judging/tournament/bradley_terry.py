"""Bradley-Terry strengths of the responses to one prompt, from the battles between them (METHOD.md step 3).

G groups, K responses, D = K + 1 unknowns: the strengths e and the judge's position bias b, its taste for the response that it
reads first. With r_mn = 1 where m won the battle in which it stood first, -1 where n won, 0 for a tie and NaN for an error or
a battle never fought, w_mn = (1 + r_mn) / 2 is the share of the win that went to m, and the model is

    P(m wins when it stands first) = sigmoid(e_m - e_n + b)
    log posterior = sum_mn w_mn log sigmoid(e_m - e_n + b) + (1 - w_mn) log sigmoid(e_n - e_m - b)
                    - prior / 2 sum_m e_m^2 - position_prior / 2 b^2.

The scores of the responses are the mode of this posterior, and an adaptive tournament plans its battles by mode and covariance,
which is Laplace's: the inverse Hessian at the mode. The paper (Wu et al. 2024, arXiv 2410.10630) maximises the likelihood
alone, without b and without ties. Where we deviate, and why:

- *A prior on the strengths.* Without one, a response that never lost has no finite strength. As prior -> 0 the strengths go to
  the paper's, centred to sum to zero; where the paper's are infinite, ours grow without end. A full tournament without ties or
  errors has the same order under every prior. `PRIOR` was chosen on simulated judges (benchmarks/judging.py), where 0.1 stops
  too early.
- *The position bias.* Where only some battles are fought, one response may have stood first more often than another, and with a
  biased judge that is worth wins. In a full tournament everyone stands first equally often, so that b hardly matters, and
  verdicts taken in both orders at once are as many for as against it, so that b is 0.
- *A tie counts as half a win for each of the two, in that order.* In the paper it counts nothing. It tells that two responses
  are close, and a planner that is not told asks about them again and again.

`posterior(np.where(results == 0, np.nan, results), prior, position_prior=None)` is the paper's fit, but for the prior.

The mode is found by Newton steps of length log(1 + r) / r, r being the most by which the full step changes any logit. For
logistic losses that step never overshoots (Bach 2010, arXiv 0910.4627, proposition 1), so there is no line search to get wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from inward.statistics import Floats

PRIOR = 0.4
POSITION_PRIOR = 1.0
TOLERANCE = 1e-10
"""The last Newton step changes no unknown by more."""
DECIMALS = 7
"""Of the mode, in logits: strengths that differ by less do so by rounding, and what the battles do not tell apart is equal."""
MAX_STEPS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """Mode of strengths and position bias, and the covariance of both together, the bias last (D = K + 1)."""

    e_GK: Floats
    bias_G: Floats
    covariance_GDD: Floats


def posterior(results_GKK: Floats, prior: float = PRIOR, position_prior: float | None = POSITION_PRIOR) -> Posterior:
    """Return the Laplace posterior of strengths and position bias, in logits, from results r_mn (NaN where there is none).

    The mode is exact to `DECIMALS`. Priors are precisions and positive; without a `position_prior` the bias is held at 0.
    """
    assert prior > 0, "a prior must be positive: without one an unbeaten response has no finite strength"
    assert position_prior is None or position_prior > 0, "a prior must be positive"
    decided_GKK = np.isfinite(results_GKK)
    first_GKK = np.where(decided_GKK, 0.5 * (1 + results_GKK), 0.0)
    second_GKK = np.where(decided_GKK, 0.5 * (1 - results_GKK), 0.0)
    theta_GD = _mode(first_GKK, second_GKK, prior, position_prior)
    _, hessian_GDD = _derivatives(theta_GD, first_GKK, second_GKK, prior, position_prior)
    rounded_GD = np.round(theta_GD, DECIMALS) + 0.0  # of two zeros only the positive one is left
    return Posterior(
        e_GK=rounded_GD[:, :-1],
        bias_G=rounded_GD[:, -1],
        covariance_GDD=np.asarray(np.linalg.inv(hessian_GDD), dtype=np.float64),
    )


def _mode(first_GKK: Floats, second_GKK: Floats, prior: float, position_prior: float | None) -> Floats:
    """Return the maximum (G, D) of the posterior, the bias last, from the wins of the first and of the second."""
    groups, k = first_GKK.shape[:2]
    theta_GD = np.zeros((groups, k + 1))
    active = np.arange(groups)
    for _ in range(MAX_STEPS):
        gradient_GD, hessian_GDD = _derivatives(theta_GD[active], first_GKK[active], second_GKK[active], prior, position_prior)
        step_GD = np.linalg.solve(hessian_GDD, gradient_GD[..., None])[..., 0]
        reach_G = np.ptp(step_GD[:, :k], axis=1) + np.abs(step_GD[:, k])
        length_G = np.log1p(reach_G) / np.where(reach_G > 0, reach_G, 1.0)
        theta_GD[active] += np.where(reach_G > 0, length_G, 1.0)[:, None] * step_GD
        active = active[np.abs(step_GD).max(axis=1, initial=0.0) > TOLERANCE]
        if not active.size:
            break
    assert not active.size, "a strictly concave likelihood has one maximum, and the damped steps lead there"
    return theta_GD


def _derivatives(
    theta_GD: Floats, first_GKK: Floats, second_GKK: Floats, prior: float, position_prior: float | None
) -> tuple[Floats, Floats]:
    """Return the gradient (G, D) of the log posterior and its negative Hessian (G, D, D)."""
    k = first_GKK.shape[-1]
    e_GK, bias_G = theta_GD[:, :k], theta_GD[:, k]
    p_GKK = expit(e_GK[:, :, None] - e_GK[:, None, :] + bias_G[:, None, None])
    surprise_GKK = first_GKK * (1 - p_GKK) - second_GKK * p_GKK
    weight_GKK = (first_GKK + second_GKK) * p_GKK * (1 - p_GKK)
    gradient_GD = np.empty_like(theta_GD)
    gradient_GD[:, :k] = surprise_GKK.sum(axis=2) - surprise_GKK.sum(axis=1) - prior * e_GK
    hessian_GDD = np.zeros((len(theta_GD), k + 1, k + 1))
    both_GKK = weight_GKK + weight_GKK.swapaxes(1, 2)
    diagonal = np.arange(k)
    hessian_GDD[:, :k, :k] = -both_GKK
    hessian_GDD[:, diagonal, diagonal] += both_GKK.sum(axis=2) + prior
    if position_prior is None:
        gradient_GD[:, k], hessian_GDD[:, k, k] = 0.0, 1.0
    else:
        gradient_GD[:, k] = surprise_GKK.sum(axis=(1, 2)) - position_prior * bias_G
        hessian_GDD[:, k, k] = weight_GKK.sum(axis=(1, 2)) + position_prior
        hessian_GDD[:, :k, k] = hessian_GDD[:, k, :k] = weight_GKK.sum(axis=2) - weight_GKK.sum(axis=1)
    return gradient_GD, hessian_GDD
