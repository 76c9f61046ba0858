"""What a run has spent: `costs.jsonl`, one row a finished shard or training.

A row is written just before its shard is renamed into place. A kill between the two leaves a row whose shard is done
again; `compact` then keeps the last row of each piece of work, so that a finished run's ledger has each of them once. What a
judge spent is another thing: it is gone, whether or not its shard came to an end, so these fields add up over all rows of a
piece of work, and a stage that fails leaves a row of them. What a
shard in work has spent is booked every second under the part "in work", so that a kill hides no more than that.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from inward.storage import storage_errors, write_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One piece of work. Seconds are wall-clock; `peak_memory` is in bytes, of the process that did it.

    `judge_calls` are judgements stored, wherever they came from; what asking for them took are the fields that begin with
    `judge_` after it (`judging.spending`): verdicts from the cache cost nothing. Runs made before there were such have none.
    """

    arm: str
    iteration: int
    stage: str
    part: str
    seconds: float
    device_seconds: float
    items: int
    tokens: int
    judge_calls: int
    peak_memory: int
    judge_answers: int = 0
    judge_failures: int = 0
    judge_retries: int = 0
    judge_uncounted: int = 0
    judge_prompt_tokens: int = 0
    judge_completion_tokens: int = 0
    judge_money: float = 0.0

    @property
    def key(self) -> tuple[int, str, str, str]:
        return (self.iteration, self.arm, self.stage, self.part)


SPENT = tuple(name for name in Cost.__dataclass_fields__ if name.startswith("judge_") and name != "judge_calls")


def append_cost(path: Path, cost: Cost) -> None:
    with storage_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(cost)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_costs(path: Path) -> list[Cost]:
    """Return the last row of each piece of work, with what judging spent on all of them, sorted.

    A last line torn by a kill is left out.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    rows: dict[tuple[int, str, str, str], Cost] = {}
    for line in complete.splitlines():
        cost = Cost(**json.loads(line))
        rows[cost.key] = _after(rows[cost.key], cost) if cost.key in rows else cost
    return [rows[key] for key in sorted(rows)]


def _after(earlier: Cost, cost: Cost) -> Cost:
    return replace(cost, **{name: getattr(earlier, name) + getattr(cost, name) for name in SPENT})


def compact(path: Path) -> None:
    """Rewrite the ledger with one row a piece of work; also mends a torn last line. Call only while holding the lock."""
    write_bytes(path, "".join(json.dumps(asdict(cost)) + "\n" for cost in read_costs(path)).encode())


def seconds_by_stage(costs: Iterable[Cost]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for cost in costs:
        totals[cost.stage] = totals.get(cost.stage, 0.0) + cost.seconds
    return totals


def spent_on_judging(costs: Sequence[Cost]) -> dict[str, int | float]:
    """Return the sums of what judging spent, by the names of `judging.spending.Spending`."""
    return {name.removeprefix("judge_"): sum(getattr(cost, name) for cost in costs) for name in SPENT}


def peak_memory() -> int:
    """Return the most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
