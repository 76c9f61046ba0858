"""Storage laws: what is written comes back, and no record is lost or doubled whatever the size of a shard."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from inward.execution.complete import complete
from inward.execution.cut import count_shards, cut
from inward.execution.here import Here
from inward.execution.task import NOTHING, Task
from inward.records import Constraint, Evaluation, Output, Prompt, Score
from inward.runs.place import Place
from inward.runs.progress import Silent
from inward.runs.shards import read_shard, read_stage, shard_path, write_shard

text = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.floats(allow_nan=False)
prompts = st.builds(
    Prompt,
    id=text,
    text=text,
    source=text,
    answers=st.lists(text, max_size=3).map(tuple),
    constraints=st.lists(st.builds(Constraint, id=text, arguments=text), max_size=3).map(tuple),
)
outputs = st.builds(
    Output,
    id=text,
    prompt_id=text,
    index=st.integers(0, 99),
    prompt_tokens=st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple),
    tokens=st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple),
    written=st.lists(st.booleans(), max_size=5).map(tuple),
    text=text,
    thought=st.none() | text,
    response=st.none() | text,
    format_error=st.none() | text,
    finish=st.sampled_from(["stop", "length"]),
    tries=st.integers(1, 5),
    logps=st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(tuple),
)
scores = st.builds(Score, output_id=text, prompt_id=text, value=st.none() | numbers, unscored=st.none() | text)
evaluations = st.builds(
    Evaluation,
    model=text,
    arm=text,
    prompts=st.integers(0, 9),
    outputs=st.integers(0, 9),
    score=st.none() | numbers,
    low=st.none() | numbers,
    high=st.none() | numbers,
    unscored=st.integers(0, 9),
    format_errors=numbers,
    unresolved=numbers,
    thought_length=st.none() | numbers,
    response_length=st.none() | numbers,
    score_by_prompt=st.dictionaries(text, numbers, max_size=3),
    metrics=st.dictionaries(text, numbers, max_size=3),
)
records = st.one_of(*(st.tuples(st.just(s[0]), st.lists(s[1], max_size=4)) for s in (
    (Prompt, prompts), (Output, outputs), (Score, scores), (Evaluation, evaluations))))  # fmt: skip


@given(records)
@settings(max_examples=60)
def test_a_shard_returns_what_was_written(case: tuple[type, list[object]]) -> None:
    record_type, items = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part-00000-x.parquet"
        write_shard(path, record_type, items)
        first = path.read_bytes()
        assert read_shard(path, record_type) == items
        write_shard(path, record_type, items)
        assert path.read_bytes() == first, "the same records must give the same bytes"


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 9), st.integers(1, 5))
def test_cut_keeps_every_item_once_and_groups_together(keys: list[int], largest: int, workers: int) -> None:
    items = list(enumerate(keys))
    shards = cut(items, Path("absent"), key=lambda i: str(i[1]), identify=lambda i: str(i[0]), largest=largest, workers=workers)
    assert sorted(item for shard in shards for item in shard.items) == items
    sizes = [len({item[1] for item in shard.items}) for shard in shards]
    assert all(0 < size <= largest for size in sizes)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1, "no worker waits for another's larger shard"
    for key in set(keys):
        assert sum(any(item[1] == key for item in shard.items) for shard in shards) == 1
    assert len({shard.name for shard in shards}) == len(shards)


@given(st.integers(0, 500), st.integers(1, 64), st.integers(1, 9))
def test_every_worker_gets_as_many_shards_as_any_other(keys: int, largest: int, workers: int) -> None:
    count = count_shards(keys, largest, workers)
    assert count * largest >= keys
    assert count % workers == 0 or count == keys


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9))
@settings(max_examples=30)
def test_a_stage_that_is_begun_is_cut_as_it_was(keys: int, largest: int, workers: int, now: int, other: int) -> None:
    """Another number of workers, or another size, goes on with the same shards."""
    with tempfile.TemporaryDirectory() as name:

        def shards(largest: int, workers: int) -> list[str]:
            items = [str(n) for n in range(keys)]
            made = cut(items, Path(name), key=str, identify=str, largest=largest, workers=workers)
            return [shard.name for shard in made]

        before = shards(largest, workers)
        write_shard(shard_path(Path(name), before[-1]), Score, [])
        assert shards(other, now) == before


@given(st.integers(0, 30), st.integers(1, 40), st.sets(st.integers(0, 30)))
@settings(max_examples=40)
def test_no_record_is_lost_or_doubled_over_any_shard_size(count: int, size: int, lost: set[int]) -> None:
    """Delete any shards after a first pass: the second pass redoes exactly those, and the records are the same."""
    items = [Prompt(id=str(n), text=f"text {n}", source="test") for n in range(count)]
    worked: list[str] = []

    def work(_: None, shard: Sequence[Prompt], __: object) -> list[Score]:
        worked.extend(item.id for item in shard)
        return [Score(output_id=item.id, prompt_id=item.id, value=1.0, unscored=None) for item in shard]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "scores"
        place = Place(arm="direct", iteration=1, stage="scores")

        def once() -> list[Score]:
            shards = cut(items, folder, key=lambda item: item.id, identify=lambda item: item.id, largest=size)
            task = Task(place=place, shards=shards, work=work, resource=NOTHING)
            ledger = Path(name) / "costs.jsonl"
            return complete(task, folder, Score, executor=Here(), ledger=ledger, reporter=Silent(), unit="items")

        first = once()
        assert [score.output_id for score in first] == [item.id for item in items]
        assert worked == [item.id for item in items]
        paths = sorted(folder.glob("*.parquet"))
        gone = [path for n, path in enumerate(paths) if n in lost]
        expected = [score.output_id for path in gone for score in read_shard(path, Score)]
        for path in gone:
            path.unlink()
        worked.clear()
        assert once() == first == read_stage(folder, Score)
        assert worked == expected
