"""Figures of the battles between the responses to one prompt: consistency, preference for a position, ties, cycles.

`Results` are the battles that one judge decided for one prompt: (first, second) maps to 1 where the first response won, to -1
where the second won, and to 0 for a tie. Battles without a verdict are not among them. Every function returns a count and what
it is a count of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from inward.records import Verdict

Results = Mapping[tuple[str, str], int]
Battles = Mapping[tuple[str, str], Results]
"""Results by (prompt, judge)."""
Count = tuple[float, float]
Bools = NDArray[np.bool_]


def results_by_group(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], dict[tuple[str, str], int]]:
    """Return the decided battles of each (prompt, judge). Only who won counts, however strongly."""
    results: dict[tuple[str, str], dict[tuple[str, str], int]] = {}
    for verdict in verdicts:
        if verdict.second is not None and verdict.value is not None:
            of_group = results.setdefault((verdict.prompt_id, verdict.judge), {})
            of_group[verdict.first, verdict.second] = (verdict.value > 0) - (verdict.value < 0)
    return results


def consistent(results: Results) -> Count:
    """Return how many of the pairs that were decided in both orders had the same winner, or a tie, in both."""
    both = [(first, second) for first, second in results if first < second and (second, first) in results]
    return sum(results[first, second] == -results[second, first] for first, second in both), len(both)


def won_by_first(results: Results) -> Count:
    """Return how many of the battles that had a winner were won by the response that stood first."""
    won = [value for value in results.values() if value]
    return sum(value > 0 for value in won), len(won)


def tied(results: Results) -> Count:
    return sum(value == 0 for value in results.values()), len(results)


def cyclic(results: Results) -> Count:
    """Return 1 where the majority relation has a cycle, of 1 where enough pairs have a majority for one to be possible.

    m stands above n where it won more of the battles between the two, both orders taken together.
    """
    beats_KK = _majority(results)
    joined_KK = beats_KK | beats_KK.T
    possible = _remains(joined_KK, lambda left: joined_KK[:, left].sum(axis=1) >= 2)
    has = _remains(beats_KK, lambda left: beats_KK[left].sum(axis=0) >= 1)
    return float(has), float(possible)


def cyclic_triples(results: Results) -> Count:
    """Return how many triples are cycles, of those with a majority in each of their three pairs; a fair coin makes 1 in 4."""
    beats_KK = _majority(results).astype(np.float64)
    joined_KK = beats_KK + beats_KK.T
    return _cube(beats_KK) / 3, _cube(joined_KK) / 6


def _majority(results: Results) -> Bools:
    index_of = {id_: index for index, id_ in enumerate(sorted(set(chain.from_iterable(results))))}
    net_KK = np.zeros((len(index_of), len(index_of)), dtype=np.int64)
    for (first, second), value in results.items():
        net_KK[index_of[first], index_of[second]] += value
    return net_KK > net_KK.T


def _remains(matrix_KK: Bools, keeps: Callable[[Bools], Bools]) -> bool:
    """Return whether any row remains after rows that `keeps` rejects are removed until it rejects none."""
    left_K = np.ones(len(matrix_KK), dtype=np.bool_)
    while left_K.any():
        kept_K = left_K & keeps(left_K)
        if kept_K.sum() == left_K.sum():
            return True
        left_K = kept_K
    return False


def _cube(matrix_KK: NDArray[np.float64]) -> float:
    """Return the trace of the cube, which counts closed walks of three steps: a cycle of three gives one from each member."""
    return float(np.round(np.trace(matrix_KK @ matrix_KK @ matrix_KK)))
