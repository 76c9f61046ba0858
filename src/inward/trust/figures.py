"""Figures about a judge: a share or a mean, over how many, with a 95% bootstrap interval over prompts. Undefined is None."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from inward.statistics import Floats, Interval, bootstrap_mean, bootstrap_sums

RESAMPLES: Final = 1000
SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A value over `n` things and the bounds of its interval.

    `value` is None and `n` 0 where there is nothing to take it of: it is never 0 then. The bounds are None where fewer than two
    prompts count. A share of 0 or 1 in every prompt has an interval of no width, as bootstraps have: read `n` beside it.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


NOTHING: Final = Figure()


def share(counts: Iterable[tuple[str, tuple[float, float]]]) -> Figure:
    """Return how many of how many, from (prompt, (so many, of so many)) in any order; `n` is the second sum."""
    totals: dict[str, list[float]] = {}
    for prompt, (some, all_) in counts:
        total = totals.setdefault(prompt, [0.0, 0.0])
        total[0] += some
        total[1] += all_
    return of_sums({prompt: total for prompt, total in totals.items() if total[1]}, ratio, n=sum(t[1] for t in totals.values()))


def mean(values: Mapping[str, float]) -> Figure:
    """Return the mean over prompts of one value each; `n` counts prompts."""
    if not values:
        return NOTHING
    interval = bootstrap_mean([values[prompt] for prompt in sorted(values)], resamples=RESAMPLES, seed=SEED)
    return _figure(interval, n=len(values), prompts=len(values))


def of_sums(totals: Mapping[str, Iterable[float]], statistic: Callable[[Floats], Floats], *, n: float) -> Figure:
    """Return what a statistic makes of each prompt's C counts, summed over prompts (`bootstrap_sums`)."""
    if not totals:
        return NOTHING
    counts_PC = np.array([list(totals[prompt]) for prompt in sorted(totals)], dtype=np.float64)
    if np.isnan(statistic(counts_PC.sum(axis=0))):
        return NOTHING
    interval = bootstrap_sums(counts_PC, statistic, resamples=RESAMPLES, seed=SEED)
    return _figure(interval, n=round(n), prompts=len(counts_PC))


def ratio(sums: Floats) -> Floats:
    """Return first / second of sums (..., 2), NaN where the second is 0."""
    return divide(sums[..., 0], sums[..., 1])


def divide(some: Floats, all_: Floats, undefined: float = np.nan) -> Floats:
    return np.where(all_ > 0, some / np.where(all_ > 0, all_, 1.0), undefined)


def _figure(interval: Interval, *, n: int, prompts: int) -> Figure:
    bounded = prompts > 1
    return Figure(value=interval.mean, low=interval.low if bounded else None, high=interval.high if bounded else None, n=n)
