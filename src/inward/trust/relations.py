"""What the battles between the responses to one prompt say of the judge: is it consistent, does it lean, does it go in circles.

`Results` are the battles one judge decided for one prompt: (first, second) to 1 where the first won, -1 the second, 0 a tie.
Battles without a verdict are not among them. Every function returns how many of how many.
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
    found: dict[tuple[str, str], dict[tuple[str, str], int]] = {}
    for verdict in verdicts:
        if verdict.second is not None and verdict.value is not None:
            results = found.setdefault((verdict.prompt_id, verdict.judge), {})
            results[verdict.first, verdict.second] = (verdict.value > 0) - (verdict.value < 0)
    return found


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
    """Return whether the majority relation has a cycle, of 1 if so many pairs have a majority that it could have one, else 0.

    m stands above n where it won more of the battles between the two, both orders taken together.
    """
    beats_KK = _majority(results)
    joined_KK = beats_KK | beats_KK.T
    possible = _remains(joined_KK, lambda left: joined_KK[:, left].sum(axis=1) >= 2)
    has = _remains(beats_KK, lambda left: beats_KK[left].sum(axis=0) >= 1)
    return float(has), float(possible)


def cyclic_triples(results: Results) -> Count:
    """Return how many of the triples with a majority in each of their three pairs are cycles; a fair coin makes 1 in 4 so."""
    beats_KK = _majority(results).astype(np.float64)
    joined_KK = beats_KK + beats_KK.T
    return _cube(beats_KK) / 3, _cube(joined_KK) / 6


def _majority(results: Results) -> Bools:
    place = {id_: at for at, id_ in enumerate(sorted(set(chain.from_iterable(results))))}
    net_KK = np.zeros((len(place), len(place)), dtype=np.int64)
    for (first, second), value in results.items():
        net_KK[place[first], place[second]] += value
    return net_KK > net_KK.T


def _remains(matrix_KK: Bools, keeps: Callable[[Bools], Bools]) -> bool:
    """Return whether anything remains once those are taken out, again and again, that `keeps` does not keep."""
    left_K = np.ones(len(matrix_KK), dtype=np.bool_)
    while left_K.any():
        kept_K = left_K & keeps(left_K)
        if kept_K.sum() == left_K.sum():
            return True
        left_K = kept_K
    return False


def _cube(matrix_KK: NDArray[np.float64]) -> float:
    """Return the trace of the cube: closed walks of three steps, of which a cycle of three makes one from each of its ends."""
    return float(np.round(np.trace(matrix_KK @ matrix_KK @ matrix_KK)))
