from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inward.config import PromptSettings
from inward.errors import MissingExtraError, UsageError
from inward.prompts import Loaded, load_prompts
from inward.records import Constraint, content_id


def load(*sources: Mapping[str, Any], unusable: str = "error") -> Loaded:
    return load_prompts(PromptSettings.model_validate_json(json.dumps({"sources": list(sources), "unusable": unusable})))


def lines(path: Path, *rows: object) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"kind": "file", "path": str(path)}


def test_the_usual_columns_are_read_where_present(tmp_path: Path) -> None:
    source = lines(
        tmp_path / "p.jsonl",
        {"id": "7", "prompt": "Write.", "instruction_id_list": ["a:b", "c:d"], "kwargs": [{"n": 1, "m": None}, {}]},
        {"prompt": "How many?", "answer": 18, "source": "maths"},
        {"prompt": "Who?", "answers": ["Ann", "Anne", "Ann"]},
    )
    write, many, who = load(source).prompts
    assert write.id == content_id("Write.")
    assert write.source == "p.jsonl"
    assert write.constraints == (Constraint(id="a:b", arguments='{"n": 1}'), Constraint(id="c:d"))
    assert (many.answers, many.source) == (("18",), "maths")
    assert who.answers == ("Ann", "Anne")


def test_columns_are_mapped(tmp_path: Path) -> None:
    source = lines(tmp_path / "p.jsonl", {"q": "How many?", "sum": "18", "key": 5, "checks": ["a:b"], "args": ['{"n": 1}']})
    columns = {"prompt": "q", "answer": "sum", "id": "key", "constraints": "checks", "kwargs": "args"}
    (prompt,) = load({**source, "columns": columns}).prompts
    assert (prompt.id, prompt.text, prompt.answers) == ("5", "How many?", ("18",))
    assert prompt.constraints == (Constraint(id="a:b", arguments='{"n": 1}'),)


def test_parquet_gives_the_same_prompts_as_json_lines(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Write.", "instruction_id_list": ["a:b", "c:d"], "kwargs": [{"n": 1}, {"word": "so"}], "answers": None},
        {"prompt": "Who?", "instruction_id_list": None, "kwargs": None, "answers": ["Ann"]},
    ]
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    from_lines = load({**lines(tmp_path / "p.jsonl", *rows)}).prompts
    from_parquet = load({"kind": "file", "path": str(path)}).prompts
    assert [(p.id, p.text, p.answers, p.constraints) for p in from_parquet] == [
        (p.id, p.text, p.answers, p.constraints) for p in from_lines
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', "not valid JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'["prompt"]', "must be an object"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"text": "a"}', "no column 'prompt' for prompt. The columns are text; map it"),
        (b'{"prompt": 5}', "prompt must be text, not int"),
        (b'{"prompt": null}', r"prompt must be text, not empty \(null\)"),
        (b'{"prompt": "a", "answers": "b"}', "answers must be a list"),
        (b'{"prompt": "a", "answer": ["b"]}', "answer must be text"),
        (b'{"prompt": "a", "answer": true}', "answer must be text, not bool"),
        (b'{"prompt": "a", "instruction_id_list": ["b"], "kwargs": [{}, {}]}', "1 constraints but 2 kwargs"),
        (b'{"prompt": "a", "instruction_id_list": ["b"], "kwargs": [5]}', "kwargs must be an object"),
        (b'{"prompt": "a", "instruction_id_list": ["b"], "kwargs": ["{"]}', "kwargs is not valid JSON"),
        (b'{"prompt": "a", "instruction_id_list": ["b"], "kwargs": [{"n": NaN}]}', "what JSON cannot"),
        (b'{"prompt": "   "}', "the prompt is empty"),
        (b'{"prompt": " FIRST\\tone "}', "repeats that of .*line 1"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "First one"}\n\n' + line + b"\n")
    with pytest.raises(UsageError, match=rf"p\.jsonl, line 3: .*{message}"):
        load({"kind": "file", "path": str(path)})


def test_unusable_prompts_are_dropped_and_counted_over_all_sources(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", {"prompt": "One"}, {"prompt": ""}, {"prompt": "Two"})
    second = lines(tmp_path / "b.jsonl", {"prompt": " one "}, {"prompt": "TWO"}, {"prompt": "Three"})
    loaded = load(first, second, unusable="drop")
    assert [prompt.text for prompt in loaded.prompts] == ["One", "Two", "Three"]
    assert loaded.notes == ("1 empty prompt dropped", "2 duplicate prompts dropped")


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no usable prompt"):
        load(lines(tmp_path / "p.jsonl", {"prompt": " "}), unusable="drop")


def test_ids_of_the_file_must_differ(tmp_path: Path) -> None:
    source = lines(tmp_path / "p.jsonl", {"prompt": "a", "id": "1"}, {"prompt": "b", "id": "1"})
    with pytest.raises(UsageError, match=r"line 2: the id '1' is that of another prompt, .*line 1"):
        load({**source, "columns": {"id": "id"}})


def test_a_mapped_column_must_be_there(tmp_path: Path) -> None:
    source = lines(tmp_path / "p.jsonl", {"prompt": "a", "gold": "1"})
    with pytest.raises(UsageError, match=r"no column 'label' for answer\. The columns are prompt, gold"):
        load({**source, "columns": {"answer": "label"}})
    with pytest.raises(UsageError, match="maps question, but only prompt"):
        load({**source, "columns": {"question": "gold"}})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "p.parquet"
    broken.write_bytes(b"PAR1 not really PAR1")
    (tmp_path / "folder.jsonl").mkdir()
    for path, message in (
        (tmp_path / "none.jsonl", "No such file"),
        (tmp_path / "none.parquet", "none.parquet.*cannot be read"),
        (tmp_path / "folder.jsonl", "cannot be read"),
        (tmp_path / "p.csv", "read from files ending in"),
        (broken, "not a sound Parquet file"),
    ):
        with pytest.raises(UsageError, match=message):
            load({"kind": "file", "path": str(path)})


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n\r\n')
    assert [prompt.text for prompt in load({"kind": "file", "path": str(path)}).prompts] == ["a", "b"]


def test_generated_tasks() -> None:
    prompts = load({"kind": "tasks", "count": 30, "seed": 3, "max_constraints": 1}).prompts
    assert len(prompts) == 30
    assert {len(prompt.constraints) for prompt in prompts} == {1}
    assert {prompt.source for prompt in prompts} == {"tasks"}


def test_datasets_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the datasets extra")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.Dataset.from_dict({"question": ["One?", "Two?"], "answer": ["1", "2"]})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "splits")
    lines(tmp_path / "train.jsonl", {"question": "One?", "answer": "1"}, {"question": "Two?", "answer": "2"})
    (tmp_path / "files").mkdir()
    (tmp_path / "train.jsonl").rename(tmp_path / "files" / "train.jsonl")
    columns = {"prompt": "question"}
    found = [
        load({"kind": "dataset", "path": str(tmp_path / name), "split": split, "columns": columns}).prompts
        for name, split in (("one", "train"), ("splits", "test"), ("files", "train"))
    ]
    assert {tuple((p.text, p.answers) for p in prompts) for prompts in found} == {(("One?", ("1",)), ("Two?", ("2",)))}
    with pytest.raises(UsageError, match="no split 'train'; it has test"):
        load({"kind": "dataset", "path": str(tmp_path / "splits")})
    with pytest.raises(UsageError, match="cannot be loaded"):
        load({"kind": "dataset", "path": str(tmp_path / "files"), "split": "none"})


def test_the_code_of_a_dataset_is_never_run(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the datasets extra")
    folder = tmp_path / "evil"
    folder.mkdir()
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load({"kind": "dataset", "path": str(folder)})
    assert not mark.exists()


def test_a_dataset_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"inward\[datasets\]"):
        load({"kind": "dataset", "path": "someone/something"})
