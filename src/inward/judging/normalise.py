"""N(v) of METHOD.md step 4: what makes scores of one prompt comparable, whatever their unit."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def normalise(values: Sequence[float]) -> list[float]:
    """Return (v - mean) / std with the population's standard deviation; zeros where all values are equal."""
    low, high = min(values), max(values)
    if low == high:
        return [0.0] * len(values)
    units = [(value - low) / (high - low) for value in values]  # so that no spread, however small, is lost to rounding
    mean, std = statistics.fmean(units), statistics.pstdev(units)
    return [(unit - mean) / std for unit in units]
