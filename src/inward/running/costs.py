"""What a run has spent: `costs.jsonl`, one row a finished shard or training.

A row is written just before its shard is renamed into place. A kill between the two leaves a row whose shard is done
again; `compact` then keeps the last row of each piece of work, so that a finished run's ledger has each of them once.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from inward.storage import storage_errors, write_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One finished piece of work. Seconds are wall-clock; `peak_memory` is in bytes, of the process that did it."""

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

    @property
    def key(self) -> tuple[int, str, str, str]:
        return (self.iteration, self.arm, self.stage, self.part)


def append_cost(path: Path, cost: Cost) -> None:
    with storage_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(cost)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_costs(path: Path) -> list[Cost]:
    """Return the last row of each piece of work, sorted. A last line torn by a kill is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    rows = {cost.key: cost for cost in (Cost(**json.loads(line)) for line in complete.splitlines())}
    return [rows[key] for key in sorted(rows)]


def compact(path: Path) -> None:
    """Rewrite the ledger with one row a piece of work; also mends a torn last line. Call only while holding the lock."""
    write_bytes(path, "".join(json.dumps(asdict(cost)) + "\n" for cost in read_costs(path)).encode())


def seconds_by_stage(costs: Iterable[Cost]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for cost in costs:
        totals[cost.stage] = totals.get(cost.stage, 0.0) + cost.seconds
    return totals


def peak_memory() -> int:
    """Return the most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
