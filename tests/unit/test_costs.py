"""The ledger: rows of older runs read, and what a judge spent is never lost, whatever became of its shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inward.errors import JudgeError
from inward.execution.complete import complete
from inward.execution.here import Here
from inward.execution.pool import Pool
from inward.execution.processes import Processes
from inward.execution.task import Executor, Resource, Shard, Task
from inward.judging.spending import Spending, total
from inward.records import Score
from inward.runs.ledger import SPENT, Cost, append_cost, compact, read_costs, spent_on_judging
from inward.runs.place import Place
from inward.runs.progress import Silent

OLD = {
    "arm": "direct",
    "iteration": 1,
    "stage": "verdicts",
    "part": "part-00000-aa",
    "seconds": 1.0,
    "device_seconds": 0.0,
    "items": 4,
    "tokens": 0,
    "judge_calls": 4,
    "peak_memory": 1,
}


def test_a_row_has_a_field_for_all_that_a_judge_can_spend() -> None:
    assert {f"judge_{name}" for name in Spending.__dataclass_fields__} == set(SPENT)


def test_rows_of_older_runs_still_read(tmp_path: Path) -> None:
    path = tmp_path / "costs.jsonl"
    path.write_text(json.dumps(OLD) + "\n")
    assert read_costs(path) == [Cost(**OLD)]
    assert spent_on_judging(read_costs(path)) == {name.removeprefix("judge_"): 0 for name in SPENT}


def test_the_last_row_counts_but_what_was_spent_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "costs.jsonl"
    for seconds, answers, money in ((9.0, 3, 0.5), (2.0, 0, 0.0), (1.0, 4, 0.25)):
        append_cost(path, Cost(**OLD | {"seconds": seconds, "judge_answers": answers, "judge_money": money}))
    expected = [Cost(**OLD | {"seconds": 1.0, "judge_answers": 7, "judge_money": 0.75})]
    assert read_costs(path) == expected
    for _ in range(2):
        compact(path)
        assert read_costs(path) == expected, "compacting loses nothing and counts nothing twice"


class Paying:
    """Costs an answer an item, and breaks in the middle of the shard that begins with `breaks_at`."""

    def __init__(self, breaks_at: str | None) -> None:
        self.breaks_at, self.answers = breaks_at, 0

    def work(self, items: Sequence[str]) -> list[Score]:
        for n, _ in enumerate(items):
            if n and items[0] == self.breaks_at:
                raise JudgeError("the endpoint is gone")
            self.answers += 1
        return [Score(output_id=item, prompt_id="p", value=1.0, unscored=None) for item in items]


def spent(judge: Paying) -> dict[str, Any]:
    return {"judge_answers": judge.answers}


def judge_shards(folder: Path, breaks_at: str | None, executor: Executor) -> None:
    task: Task[Paying, str, Score] = Task(
        place=Place(arm="direct", iteration=1, stage="verdicts"),
        shards=(Shard(name="part-0", items=("a", "b", "c")), Shard(name="part-1", items=("d", "e", "f"))),
        resource=Resource(kind="judge", key=(str(breaks_at),), make=partial(Paying, breaks_at)),
        work=_work,
        spent=spent,
    )
    ledger = folder / "costs.jsonl"
    complete(task, folder / "scores", Score, executor=executor, ledger=ledger, reporter=Silent(), unit="items")


def _work(judge: Paying, items: Sequence[str], _: Any) -> list[Score]:
    return judge.work(items)


def one_process() -> Executor:
    return Pool(Processes(1))


@pytest.mark.parametrize("make", [Here, pytest.param(one_process, marks=pytest.mark.slow)])
def test_what_a_failed_shard_spent_is_booked(tmp_path: Path, make: Callable[[], Executor]) -> None:
    tmp_path.joinpath("scores").mkdir()
    executor = make()
    with pytest.raises(JudgeError, match="gone"):
        judge_shards(tmp_path, "d", executor)
    first, second = read_costs(tmp_path / "costs.jsonl")
    assert (first.items, first.judge_answers, second.judge_answers) == (3, 3, 1)
    judge_shards(tmp_path, None, executor)
    _, again = read_costs(tmp_path / "costs.jsonl")
    assert (again.part, again.judge_answers) == (second.part, 1 + 3)
    assert spent_on_judging(read_costs(tmp_path / "costs.jsonl"))["answers"] == 7
    executor.close()


def test_spendings_add_up_and_tell_stretches_apart() -> None:
    one = Spending(answers=2, prompt_tokens=10, money=0.5)
    both = total([one, Spending(answers=1, retries=1, money=0.25)])
    assert both == Spending(answers=3, retries=1, prompt_tokens=10, money=0.75)
    assert both - one == Spending(answers=1, retries=1, money=0.25)
    assert total([]) == Spending()
