"""Bradley-Terry strengths of the responses to one prompt, from the battles between them (METHOD.md step 3).

G groups, K responses, always the last axes; any number of leading axes is fitted at once. With r_mn = 1 where m won the
battle in which it stood first, -1 where n won, 0 for a tie and NaN for an error or a battle never fought, the strengths are

    argmax over e of  sum_mn B_mn log sigmoid(e_m - e_n) - prior / 2 sum_m e_m^2,    B_mn = [r_mn = 1] + [r_nm = -1].

Where we deviate from the paper (Wu et al. 2024, arXiv 2410.10630): it has no prior, so that a response which never lost has
no finite value. Ours is normal with mean 0 and variance 1 / prior. As prior -> 0 the strengths go to the paper's, centred
to sum to zero; where the paper's are infinite, ours grow without end. A full tournament without ties or errors has the same
order under every prior. `PRIOR` was chosen on simulated judges (benchmarks/judging.py), where 0.1 stops too early.

`posterior` fits, beside the strengths, the judge's taste for what stands first, which sparse battles cannot cancel:
P(m wins when it stands first) = sigmoid(e_m - e_n + bias). Its covariance is Laplace's: the inverse Hessian at the mode.

Both use Newton steps of length log(1 + r) / r, r being the most by which the full step changes any logit. For logistic losses
that step never overshoots (Bach 2010, arXiv 0910.4627, proposition 1), so there is no line search to get wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRIOR = 0.4
POSITION_PRIOR = 1.0
TOLERANCE = 1e-10
MAX_STEPS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """Mode of strengths and position bias, and the covariance of both together, the bias last (D = K + 1)."""

    e_GK: Floats
    bias_G: Floats
    covariance_GDD: Floats

    @property
    def std_GK(self) -> Floats:
        """Standard deviation of every strength."""
        return np.sqrt(np.diagonal(self.covariance_GDD, axis1=-2, axis2=-1)[..., :-1])


def battle_matrix(results_KK: Floats) -> Floats:
    """Return B of METHOD.md, how often row beat column in either position. Ties (0) and NaN count nothing."""
    return (results_KK > 0).astype(np.float64) + np.swapaxes(results_KK < 0, -1, -2)


def strengths(battles_KK: Floats, prior: float = PRIOR) -> Floats:
    """Return the Bradley-Terry strengths (..., K) of battle matrices (..., K, K), exact to `TOLERANCE`; `prior` > 0."""
    battles_KK = np.asarray(battles_KK, dtype=np.float64)
    leading, k = battles_KK.shape[:-2], battles_KK.shape[-1]
    won_GKK = battles_KK.reshape(-1, k, k)
    theta_GD, _ = _fit(won_GKK, np.zeros_like(won_GKK), prior, position_prior=None)
    return theta_GD[:, :k].reshape(*leading, k)


def posterior(results_GKK: Floats, prior: float = PRIOR, position_prior: float = POSITION_PRIOR) -> Posterior:
    """Return the Laplace posterior of strengths and position bias from results r_mn (NaN where there is none)."""
    k = results_GKK.shape[-1]
    first_GKK = (results_GKK > 0).astype(np.float64)
    second_GKK = (results_GKK < 0).astype(np.float64)
    theta_GD, covariance_GDD = _fit(first_GKK, second_GKK, prior, position_prior)
    return Posterior(e_GK=theta_GD[:, :k], bias_G=theta_GD[:, k], covariance_GDD=covariance_GDD)


def _fit(first_GKK: Floats, second_GKK: Floats, prior: float, position_prior: float | None) -> tuple[Floats, Floats]:
    """Return the mode (G, K + 1), bias last, and the inverse Hessian there. No position prior: the bias is held at 0."""
    assert prior > 0, "a prior must be positive: without one an unbeaten response has no finite strength"
    assert position_prior is None or position_prior > 0, "a prior must be positive"
    groups, k = first_GKK.shape[:2]
    theta_GD = np.zeros((groups, k + 1))
    active = np.arange(groups)
    for _ in range(MAX_STEPS):
        gradient, hessian = _derivatives(theta_GD[active], first_GKK[active], second_GKK[active], prior, position_prior)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        reach = np.ptp(step[:, :k], axis=1) + np.abs(step[:, k])
        damping = np.log1p(reach) / np.where(reach > 0, reach, 1.0)
        theta_GD[active] += np.where(reach > 0, damping, 1.0)[:, None] * step
        active = active[np.abs(step).max(axis=1, initial=0.0) > TOLERANCE]
        if not active.size:
            break
    assert not active.size, "a strictly concave likelihood has one maximum, and the damped steps lead there"
    _, hessian = _derivatives(theta_GD, first_GKK, second_GKK, prior, position_prior)
    return theta_GD, np.asarray(np.linalg.inv(hessian), dtype=np.float64)


def _derivatives(
    theta_GD: Floats, first_GKK: Floats, second_GKK: Floats, prior: float, position_prior: float | None
) -> tuple[Floats, Floats]:
    """Return the gradient of the log posterior and its negative Hessian."""
    k = first_GKK.shape[-1]
    e_GK, bias_G = theta_GD[:, :k], theta_GD[:, k]
    fought_GKK = first_GKK + second_GKK
    p_GKK = sigmoid(e_GK[:, :, None] - e_GK[:, None, :] + bias_G[:, None, None])
    surprise_GKK = first_GKK * (1 - p_GKK) - second_GKK * p_GKK
    weight_GKK = fought_GKK * p_GKK * (1 - p_GKK)
    gradient = np.empty_like(theta_GD)
    gradient[:, :k] = surprise_GKK.sum(axis=2) - surprise_GKK.sum(axis=1) - prior * e_GK
    hessian = np.zeros((len(theta_GD), k + 1, k + 1))
    both_GKK = weight_GKK + weight_GKK.swapaxes(1, 2)
    at = np.arange(k)
    hessian[:, :k, :k] = -both_GKK
    hessian[:, at, at] += both_GKK.sum(axis=2) + prior
    if position_prior is None:
        gradient[:, k], hessian[:, k, k] = 0.0, 1.0
    else:
        gradient[:, k] = surprise_GKK.sum(axis=(1, 2)) - position_prior * bias_G
        hessian[:, k, k] = weight_GKK.sum(axis=(1, 2)) + position_prior
        hessian[:, :k, k] = hessian[:, k, :k] = weight_GKK.sum(axis=2) - weight_GKK.sum(axis=1)
    return gradient, hessian


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), dtype=np.float64)
