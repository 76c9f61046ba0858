"""Items to shards: as many as keep all workers busy, none larger than the recipe allows, each named by its content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from inward.execution.task import Shard
from inward.runs.shards import shard_name, stored_parts

T = TypeVar("T")


def cut(
    items: Sequence[T],
    folder: Path,
    *,
    key: Callable[[T], str],
    identify: Callable[[T], str],
    largest: int,
    workers: int = 1,
) -> tuple[Shard[T], ...]:
    """Cut items into shards of at most `largest` keys, items of one key together, in their order.

    All shards hold about the same number of keys, and every worker gets as many shards as any other. A stage that is begun
    (`folder` holds shards of it) is cut as it was, whatever the number of workers is now.
    """
    by_key: dict[str, list[T]] = {}
    for item in items:
        by_key.setdefault(key(item), []).append(item)
    groups = list(by_key.values())
    if not groups:
        return ()
    count = stored_parts(folder)[1] or count_shards(len(groups), largest, workers)
    bounds = [number * len(groups) // count for number in range(count + 1)]
    parts = [[item for group in groups[low:high] for item in group] for low, high in pairwise(bounds)]
    return tuple(make_shard(number, count, part, identify) for number, part in enumerate(parts))


def count_shards(keys: int, largest: int, workers: int) -> int:
    """Return the number of shards for so many keys: a multiple of the workers, but no more than there are keys."""
    least = -(-keys // largest)
    return min(-(-least // workers) * workers, keys)


def make_shard(number: int, count: int | None, items: Sequence[T], identify: Callable[[T], str]) -> Shard[T]:
    """Return items as the shard that is `number` of `count`, named by what `identify` says of each."""
    return Shard(name=shard_name(number, count, [identify(item) for item in items]), items=tuple(items))
