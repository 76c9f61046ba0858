"""The statistics that several rooms need: 95% bootstrap intervals, N(v), correlations.

Intervals are percentiles of a bootstrap over prompts (Efron 1979): of a mean, of a difference in pairs, and of anything that
follows from sums. Prompts are what is resampled, for they are the independent draws; the samples of one prompt are not. The
paper gives no intervals. P prompts, R resamples, C counts, K samples of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import numpy as np
import numpy.typing as npt

from inward.errors import UsageError

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
MAX_NUMBERS = 4_000_000
"""How many numbers are held at once while resampling: 32 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and the 95% interval around it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedInterval:
    """The mean of a - b over the prompts that both have, with its 95% interval.

    `p` is the two-sided bootstrap p-value of "no difference". `left_out` counts prompts that only one of them has.
    """

    difference: float
    low: float
    high: float
    p: float
    prompts: int
    left_out: int


def bootstrap_mean(values: Sequence[float], *, resamples: int, seed: int) -> Interval:
    """Return the mean of `values` (at least one) and its interval; the same seed gives the same interval."""
    means = _resampled_means(np.asarray(values, dtype=np.float64), resamples, seed)
    low, high = _bounds(means)
    return Interval(mean=float(np.mean(values)), low=low, high=high)


def paired_bootstrap(a: Mapping[str, float], b: Mapping[str, float], *, resamples: int, seed: int) -> PairedInterval:
    """Compare two models prompt by prompt. Raises `UsageError` where they share no scored prompt.

    p = 2 * min(share of resampled differences <= 0, share >= 0), with one added to each count so that it is never 0.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        raise UsageError("the two evaluations share no scored prompt; compare models evaluated on the same prompts")
    differences = np.array([a[prompt] - b[prompt] for prompt in common], dtype=np.float64)
    means = _resampled_means(differences, resamples, seed)
    low, high = _bounds(means)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return PairedInterval(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=min(1.0, 2 * (tail + 1) / (resamples + 1)),
        prompts=len(common),
        left_out=len(a.keys() ^ b.keys()),
    )


def bootstrap_sums(counts_PC: Floats, statistic: Callable[[Floats], Floats], *, resamples: int, seed: int) -> Interval:
    """Return what `statistic` makes of C counts summed over all prompts, and its interval.

    `statistic` takes sums (..., C) and returns values (...): a rate over items of which each prompt has its own number, or
    whatever follows from a table of confusions. Resamples in which it is undefined (NaN) are left out.
    """
    assert len(counts_PC), "nothing to resample"
    prompts, random = len(counts_PC), np.random.default_rng(seed)
    block = max(1, MAX_NUMBERS // prompts)
    values = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(prompts, size=(rows, prompts)) + prompts * np.arange(rows)[:, None]
        times_RP = np.bincount(drawn.ravel(), minlength=rows * prompts).reshape(rows, prompts)
        values.append(statistic(times_RP @ counts_PC))
    values_R = np.concatenate(values)
    low, high = _bounds(values_R[~np.isnan(values_R)])
    return Interval(mean=float(statistic(counts_PC.sum(axis=0))), low=low, high=high)


def normalise(values: Sequence[float]) -> list[float]:
    """Return N(v) = (v - mean) / std with the population's standard deviation; zeros where all values are equal."""
    low, high = min(values), max(values)
    if low == high:
        return [0.0] * len(values)
    units = [(value - low) / (high - low) for value in values]  # so that no spread, however small, is lost to rounding
    mean, std = fmean(units), pstdev(units)
    return [(unit - mean) / std for unit in units]


def correlation(a_K: Floats, b_K: Floats) -> float:
    """Return Pearson's correlation of two series, each of which needs a spread."""
    return float(np.corrcoef(a_K, b_K)[0, 1])


def rank_correlation(a_K: Floats, b_K: Floats) -> float:
    """Return Spearman's correlation of two series, each of which needs a spread; equal values share the mean of their ranks."""
    from scipy.stats import rankdata

    return correlation(rankdata(a_K), rankdata(b_K))


def _resampled_means(values_P: Floats, resamples: int, seed: int) -> Floats:
    """Return the means of `resamples` draws of P values with replacement, a bounded block of draws at a time."""
    assert values_P.size, "nothing to resample"
    random = np.random.default_rng(seed)
    block = max(1, MAX_NUMBERS // values_P.size)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([values_P[random.integers(values_P.size, size=(rows, values_P.size))].mean(axis=1) for rows in sizes])


def _bounds(means: Floats) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
