"""Storage laws: what is written comes back, and no record is lost or doubled whatever the size of a shard."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from inward.records import Constraint, Evaluation, Output, Prompt, Score
from inward.running.execute import Place, Silent, cut, run_shards
from inward.runs.shards import read_shard, read_stage, write_shard

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


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 9))
def test_cut_keeps_every_item_once_and_groups_together(keys: list[int], size: int) -> None:
    items = list(enumerate(keys))
    groups = cut(items, size, lambda item: str(item[1]))
    assert sorted(item for group in groups for item in group) == items
    assert all(len({item[1] for item in group}) <= size for group in groups)
    for key in set(keys):
        assert sum(any(item[1] == key for item in group) for group in groups) == 1


@given(st.integers(0, 30), st.integers(1, 40), st.sets(st.integers(0, 30)))
@settings(max_examples=40)
def test_no_record_is_lost_or_doubled_over_any_shard_size(count: int, size: int, lost: set[int]) -> None:
    """Delete any shards after a first pass: the second pass redoes exactly those, and the records are the same."""
    items = [Prompt(id=str(n), text=f"text {n}", source="test") for n in range(count)]
    worked: list[str] = []

    def work(_: object, group: object, __: object) -> list[Score]:
        worked.extend(item.id for item in group)  # type: ignore[attr-defined]
        return [Score(output_id=i.id, prompt_id=i.id, value=1.0, unscored=None) for i in group]  # type: ignore[attr-defined]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "scores"

        def once() -> list[Score]:
            return run_shards(
                folder,
                Score,
                cut(items, size, lambda item: item.id),
                identify=lambda item: item.id,
                place=Place(arm="direct", iteration=1, stage="scores"),
                start=lambda: None,
                work=work,
                costs=Path(name) / "costs.jsonl",
                reporter=Silent(),
                unit="items",
                isolate=False,
            )

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
