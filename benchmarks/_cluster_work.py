"""What `benchmarks.cluster` has done on nodes: an engine that takes as long as one would, and draws nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from inward.execution.task import NOTHING, Advance, Needs, Shard, Task
from inward.records import Score
from inward.runs.place import Place

STEP_S = 0.25
"""How often the engine says how far it is."""
Item = tuple[str, float]
"""An output's name, and the seconds that it takes to draw it."""


def task(shards: Sequence[Sequence[Item]], meeting: Path | None = None) -> Task[None, Item, Score]:
    """Return the task of drawing outputs; with a folder to meet in, of waiting there until every shard is in work."""
    named = tuple(Shard(name=f"part-{number:05d}", items=tuple(items)) for number, items in enumerate(shards))
    return Task(
        place=Place(arm="thinking", iteration=1, stage="outputs" if meeting is None else "start"),
        shards=named,
        work=draw if meeting is None else partial(meet, meeting, len(named)),
        resource=NOTHING,
        needs=Needs(model=True),
    )


def draw(_: None, items: Sequence[Item], advance: Advance) -> list[Score]:
    """Sleep through the time that the outputs take, one after the other."""
    for _name, seconds in items:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(STEP_S, left))
            advance(0, 1)
        advance(1, 0)
    return [Score(output_id=name, prompt_id=name, value=seconds, unscored=None) for name, seconds in items]


def meet(folder: Path, count: int, _: None, items: Sequence[Item], advance: Advance) -> list[Score]:
    """Return once so many shards are in work at the same time: then every worker has started."""
    (folder / items[0][0]).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.05)
    return draw(None, (), advance)
