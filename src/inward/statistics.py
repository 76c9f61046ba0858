"""The statistics that several rooms need: 95% bootstrap intervals, N(v), correlations.

Intervals are percentiles of a bootstrap over prompts (Efron 1979): of a mean, of a difference in pairs, and of anything that
follows from sums. Prompts are what is resampled, for they are the independent draws; the samples of one prompt are not. The
paper gives no intervals. P prompts, R resamples, C counts, G groups, K samples of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inward.errors import UsageError

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.intp]

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
    values_1K = np.asarray(values, dtype=np.float64)[None]
    return [float(value) for value in normalise_rows(values_1K, np.ones(values_1K.shape, dtype=np.intp))[0]]


def normalise_rows(values_GK: Floats, copies_GK: Counts) -> Floats:
    """Return N(v) within each row, a value counted as often as it has copies; zeros where all values of a row are equal.

    A value without copies is padding: it does not count and comes back as NaN. Equal means exactly equal, whatever the unit,
    so values that carry rounding errors must be rounded by those who know how large these are.
    """
    units_GK, _ = _units(values_GK, copies_GK)
    mean_G1, std_G1 = _moments(units_GK, copies_GK)
    normalised_GK = (units_GK - mean_G1) / np.where(std_G1 > 0, std_G1, 1.0)
    return np.where(copies_GK > 0, normalised_GK, np.nan)


def std_rows(values_GK: Floats, copies_GK: Counts) -> Floats:
    """Return the standard deviation (G, 1) of each row that `normalise_rows` divides by, 0 where all its values are equal."""
    units_GK, range_G1 = _units(values_GK, copies_GK)
    return _moments(units_GK, copies_GK)[1] * range_G1


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


def _units(values_GK: Floats, copies_GK: Counts) -> tuple[Floats, Floats]:
    """Return the values moved and scaled to 0..1, so that no spread is lost to rounding, and the range (G, 1) of each row."""
    present_GK = copies_GK > 0
    low_G1 = np.where(present_GK, values_GK, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high_G1 = np.where(present_GK, values_GK, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    spread_G1 = high_G1 > low_G1
    low_G1, high_G1 = np.where(spread_G1, low_G1, 0.0), np.where(spread_G1, high_G1, 0.0)
    range_G1 = high_G1 - low_G1
    moved_GK = np.where(present_GK & spread_G1, values_GK, low_G1) - low_G1
    return moved_GK / np.where(spread_G1, range_G1, 1.0), range_G1


def _moments(units_GK: Floats, copies_GK: Counts) -> tuple[Floats, Floats]:
    """Return mean and standard deviation (G, 1) of each row."""
    total_G1 = np.maximum(copies_GK.sum(axis=1, keepdims=True), 1)
    mean_G1 = (units_GK * copies_GK).sum(axis=1, keepdims=True) / total_G1
    variance_G1 = ((units_GK - mean_G1) ** 2 * copies_GK).sum(axis=1, keepdims=True) / total_G1
    return np.asarray(mean_G1, dtype=np.float64), np.asarray(np.sqrt(variance_G1), dtype=np.float64)
