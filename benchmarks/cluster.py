"""A Ray cluster of three nodes on this machine: how well its workers are kept busy, and what deaths cost.

    python -m benchmarks.cluster --json
    python -m benchmarks.cluster --json --workers 1 2 64 --no-kills

Each number of workers draws `--shards` shards a worker with a scripted engine: it sleeps for as long as outputs of lognormal
length would take, so that one machine can stand for many. `start_seconds` is until all workers are there. Then `seconds` is
what the shards took with their records stored, `ideal_seconds` what they would take if handing out, carrying and storing were
free, and `efficiency` the shards' own seconds over those of all workers: what is lost at the end, when some have nothing left
to do, is in it.

Then a whole run with a tiny model goes over the cluster, in which nodes, workers and its own process are killed, each in
another stage. `equal_to_one_machine` says whether all that it stores is, byte for byte, what a run without a cluster stores,
but for what is `not_compared`; `finished_work_lost` how many finished shards were gone or made again.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _cluster_work
from inward.execution.complete import complete
from inward.execution.pool import Pool
from inward.records import Score
from inward.runs.progress import Silent
from tests.cluster import joined, started_cluster
from tests.integration.cluster_kills import run_until_all_are_killed, write_inputs

Shards = list[list[_cluster_work.Item]]


def main() -> None:
    arguments = _parse()
    largest = max(arguments.workers)
    with started_cluster(cpus=-(-largest // 2)) as nodes, joined(nodes.address), tempfile.TemporaryDirectory() as folder:
        rows = [_measure(workers, arguments, Path(folder) / str(workers)) for workers in arguments.workers]
    result = {"benchmark": "cluster", "nodes": 3, "by_workers": rows} | ({} if arguments.no_kills else _kill())
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:22} {value}" for key, value in result.items()))


def _measure(workers: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from inward.execution.ray import RayActors, Share, marked

    (folder / "meeting").mkdir(parents=True)
    with marked(folder) as site:
        pool = Pool(RayActors(lambda _: Share(workers=workers, cpus=1), site))
        began = time.perf_counter()
        _store(pool, [[(f"worker-{number}", 0.0)] for number in range(workers)], folder, folder / "meeting")
        started = time.perf_counter() - began
        shards = _shards(workers * arguments.shards, arguments.seconds)
        began = time.perf_counter()
        _store(pool, shards, folder)
        seconds = time.perf_counter() - began
        pool.close()
    lengths = [sum(seconds for _, seconds in items) for items in shards]
    return {
        "workers": workers,
        "shards": len(shards),
        "start_seconds": round(started, 2),
        "seconds": round(seconds, 2),
        "ideal_seconds": round(_ideal(lengths, workers), 2),
        "efficiency": round(sum(lengths) / (workers * seconds), 3),
    }


def _store(pool: Pool[Any], shards: Shards, folder: Path, meeting: Path | None = None) -> None:
    task = _cluster_work.task(shards, meeting)
    complete(
        task,
        folder / task.place.stage,
        Score,
        executor=pool,
        ledger=folder / "costs.jsonl",
        reporter=Silent(),
        unit="outputs",
    )


def _shards(count: int, seconds: float) -> Shards:
    """Return shards of four outputs that take `seconds` on average, a few of them three times as long."""
    lengths = random.Random(3)
    mean = seconds / 4
    return [
        [(f"output-{number}-{place}", mean * lengths.lognormvariate(-0.125, 0.5)) for place in range(4)]
        for number in range(count)
    ]


def _ideal(lengths: list[float], workers: int) -> float:
    """Return how long the shards take if whoever is free takes the next one at once."""
    free = [0.0] * workers
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def _kill() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_inputs(folder)
        with started_cluster() as nodes:
            report = run_until_all_are_killed(recipe, folder, nodes)
        return {
            "killed": report.killed,
            "equal_to_one_machine": not report.different,
            "not_compared": ["times", "execution.ray", "what judges spent"],
            "finished_work_lost": len(report.lost),
        }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How busy the workers of a cluster are, and what deaths cost.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 64])
    parser.add_argument("--shards", type=int, default=6, help="shards for each worker")
    parser.add_argument("--seconds", type=float, default=4.0, help="what a shard takes on average")
    parser.add_argument("--no-kills", action="store_true", help="leave out the run in which nodes and processes are killed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
