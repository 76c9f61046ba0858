"""The command line from outside: help, errors and exit codes by real processes; status, show and export on a small run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inward.cli import chat, output, reading, status
from inward.cli.export import pair_rows
from inward.cli.main import main
from inward.config import parse_recipe
from inward.engines.engine import Decoding
from inward.records import Evaluation, Output, Pair, Prompt, Score
from inward.runs.directory import RunDir
from inward.runs.ledger import Cost, append_cost
from inward.runs.opening import prepare
from inward.runs.shards import write_shard
from inward.storage import write_json
from inward.thought import DIRECT, GENERIC, SPECIFIC, ThoughtFormat, join, split
from tests.tiny import tiny_model

COMMANDS = ["run", "evaluate", "audit", "status", "show", "export", "chat", "recipes", "models", "models get", "recipes show"]
HOSTILE = "\x1b]0;owned\x07\x1b[2Jnice\x1b[31m red\x9b1m\rx"


def inward(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inward.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process, for those that need no process of their own; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["inward", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_help_lists_every_command_and_teaches() -> None:
    done = inward("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for command in ("run", "evaluate", "audit", "status", "show", "export", "chat", "recipes", "models"):
        assert f"\n  {command} " in done.stdout
    assert "inward run demo" in done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2], "a summary is cut off"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *command.split(), "--help") == 0
    said = capsys.readouterr().out
    assert "Usage: inward" in said
    assert "Example:" in said
    assert f"inward {command.split()[0]}" in said.partition("Example:")[2]


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "pydantic", "pyarrow", "rich", "numpy", "datasets", "huggingface_hub"}
    code = f"import inward.cli.main, sys; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    from importlib import metadata

    assert inward("--version").stdout == f"inward {metadata.version('inward')}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "no-such-recipe"], "error: no-such-recipe is neither a recipe file nor"),
        (["run", "demo", "trainng.beta=1"], "error: "),
        (["status", "/nowhere"], "error: /nowhere is not a run directory"),
        (["models", "get", "gpt9"], "error: no embedded model is called 'gpt9'"),
        (["chat", "./nowhere"], "error: model folder nowhere does not exist"),
        (["chat", "smollm2", "--format", "poetic"], "error: --format 'poetic' is none of generic, specific, direct"),
        (["show"], "Missing argument"),
        (["nonsense"], "No such command"),
    ],
)
def test_a_mistake_is_one_message_on_stderr_and_exit_code_2(arguments: list[str], said: str) -> None:
    done = inward(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_no_error(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "inward.cli.main", "recipes", "show", "demo"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(write)
    assert done.stderr == ""


def test_recipes_lists_and_shows() -> None:
    listed = json.loads(inward("recipes", "--json").stdout)
    demo = next(row for row in listed if row["name"] == "demo")
    assert demo["description"] in inward("recipes").stdout
    assert inward("recipes", "show", "demo").stdout == Path(demo["path"]).read_text(encoding="utf-8")


def test_clean_takes_out_what_a_terminal_would_obey() -> None:
    assert output.clean(HOSTILE) == "nice redx"
    assert output.clean("a\tb\r\nc — é 😀") == "a\tb\nc — é 😀"
    assert output.clean("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\") == "link"
    assert output.clean("\x1bP+q\x1b\\x\x1bcy\x1b") == "xy"
    assert output.clean("\x1b[31") == ""


@given(st.text(alphabet=st.sampled_from("\x1b\x9b\x9d\x07[]PX;m0\\ab\r\n\t\x00\ud800")))
def test_clean_leaves_no_control_character_whatever_the_text(text: str) -> None:
    left = output.clean(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in left)
    assert output.clean(left) == left
    left.encode()


def test_turns_hide_earlier_thoughts_and_keep_the_system_message() -> None:
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert chat.turns(DIRECT, history, "x", "be brief") == [
        {"role": "system", "content": "be brief"},
        *history,
        {"role": "user", "content": "x"},
    ]
    last = chat.turns(GENERIC, history, "x", None)[-1]
    assert last["content"].endswith("User query: x")
    in_system = ThoughtFormat("mine", "Think, then write <R>.", response_marker="<R>", turn="system")
    assert chat.turns(in_system, [], "x", "be brief") == [
        {"role": "system", "content": "be brief\n\nThink, then write <R>."},
        {"role": "user", "content": "x"},
    ]


def test_chat_shows_the_response_and_only_on_demand_the_thought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(tmp_path / "tiny")
    words = ["chat", str(model), "--format", "specific", "--budget", "8", "--max-new-tokens", "40", "--prompt", "hi"]
    ask = chat.make_ask(model, SPECIFIC, Decoding(max_new_tokens=40), budget=8, seed=0, tries=3, trust_remote_code=False)
    answer = ask(chat.turns(SPECIFIC, [], "hi", None))
    assert answer.thought
    assert answer.response

    assert call(monkeypatch, *words) == 0
    assert capsys.readouterr().out == output.clean(answer.response) + "\n"
    assert call(monkeypatch, *words, "--show-thoughts") == 0
    shown = capsys.readouterr().out
    assert shown == f"{output.clean(answer.thought)}\n\n{output.clean(answer.response)}\n"


def test_chat_reads_lines_and_keeps_the_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(tmp_path / "tiny")
    ask = chat.make_ask(model, DIRECT, Decoding(max_new_tokens=12), budget=None, seed=3, tries=3, trust_remote_code=False)
    first = ask(chat.turns(DIRECT, [], "one", None)).response
    history = [{"role": "user", "content": "one"}, {"role": "assistant", "content": str(first)}]
    second = ask(chat.turns(DIRECT, history, "two", None)).response
    assert first
    assert second

    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n  \ntwo\n"))
    assert call(monkeypatch, "chat", str(model), "--max-new-tokens", "12", "--seed", "3") == 0
    assert capsys.readouterr().out == f"{output.clean(first)}\n{output.clean(second)}\n"


# A run of one iteration, made of records through the real writers.

TREE: dict[str, Any] = {
    "iterations": 1,
    "model": {"path": "smollm2"},
    "prompts": {"sources": [{"kind": "tasks", "count": 8}], "per_iteration": 2, "validation": 2},
    "thought": {"format": "specific", "scaffold": {"budget": 16}},
    "judge": {"kind": "verifiable"},
    "execution": {"shard_prompts": 1},
    "training": {"epochs": 2},
}
PROMPTS = [Prompt(id="aaaa01", text="Name a [red] fruit.", source="test"), Prompt(id="aabb02", text=HOSTILE, source="test")]


def drawn(id: str, prompt_id: str, thought: str, response: str | None) -> Output:
    text = join(SPECIFIC, thought, response) if response else thought
    parts = split(SPECIFIC, text)
    return Output(
        id=id,
        prompt_id=prompt_id,
        index=0,
        prompt_tokens=(1,),
        tokens=(2, 3),
        written=(False, False),
        text=text,
        thought=parts.thought,
        response=parts.response,
        format_error=parts.error,
        finish="stop",
    )


OUTPUTS = [
    drawn("o1", "aaaa01", "red, so", "A cherry."),
    drawn("o2", "aaaa01", "yellow?", "A banana."),
    drawn("o3", "aabb02", HOSTILE, HOSTILE),
    drawn("o4", "aabb02", "no marker at all", None),
]
VALUES = {"o1": 1.0, "o2": 0.25, "o3": 0.5, "o4": None}
PAIR = Pair(
    id="p1",
    prompt_id="aaaa01",
    kind="scored",
    chosen_id="o1",
    rejected_id="o2",
    chosen_score=1.0,
    rejected_score=0.25,
    margin=2.0,
)


def evaluation(model: str, arm: str, score: float) -> dict[str, Any]:
    figures = Evaluation(
        model=model,
        arm=arm,
        prompts=2,
        outputs=2,
        score=score,
        low=score - 0.1,
        high=score + 0.1,
        unscored=0,
        format_errors=0.5,
        unresolved=0.0,
        thought_length=120.0,
        response_length=80.4,
        score_by_prompt={},
        metrics={},
    )
    return asdict(figures)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run stopped in iteration 1: the thinking arm finished it, the direct arm has only been measured as the seed."""
    made = RunDir(tmp_path / "run")
    made.root.mkdir()
    prepare(made, parse_recipe(TREE), "# the recipe\n")
    for arm in ("thinking", "direct"):
        folder = made.iteration(arm, 0)
        stored = evaluation("seed", arm, 0.25)
        write_json(folder / "validation" / "seed" / "evaluation.json", stored)
        write_json(folder / "evaluation.json", {"chosen": "seed", "evaluations": {"seed": stored}})
    folder = made.iteration("thinking", 1)
    write_shard(folder / "prompts" / "part-00000-of-00001-0.parquet", Prompt, PROMPTS)
    for n, prompt in enumerate(PROMPTS):
        mine = [item for item in OUTPUTS if item.prompt_id == prompt.id]
        write_shard(folder / "outputs" / f"part-0000{n}-of-00002-0.parquet", Output, mine)
    scores = [
        Score(
            output_id=o.id, prompt_id=o.prompt_id, value=VALUES[o.id], unscored=None if VALUES[o.id] is not None else "format"
        )
        for o in OUTPUTS
    ]
    write_shard(folder / "scores" / "part-00000-of-00001-0.parquet", Score, scores)
    write_shard(folder / "pairs" / "part-00000-of-00001-0.parquet", Pair, [PAIR])
    write_json(folder / "pairing.json", {"pairs": 1, "skipped": {}})
    stored = evaluation("epoch_02", "thinking", 0.75)
    write_json(folder / "validation" / "epoch_02" / "evaluation.json", stored)
    write_json(folder / "evaluation.json", {"chosen": "epoch_02", "evaluations": {"epoch_02": stored}})
    write_json(folder / "model" / "config.json", {"model_type": "llama"})
    cost = Cost(
        arm="thinking",
        iteration=1,
        stage="outputs",
        part="part",
        seconds=61.0,
        device_seconds=0.0,
        items=2,
        tokens=1234,
        judge_calls=0,
        peak_memory=2**30,
    )
    append_cost(made.costs, cost)
    return made


def test_status_counts_what_is_done(run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "status", str(run.root), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    done = {(row["arm"], row["iteration"], row["stage"]): (row["done"], row["total"]) for row in found["stages"]}
    assert not found["finished"]
    assert done["thinking", 0, "validation"] == (1, 1)
    assert done["thinking", 1, "outputs"] == (2, 2)
    assert done["thinking", 1, "verdicts"] == (0, None)
    assert done["thinking", 1, "reference"] == (0, None)
    assert done["thinking", 1, "training"] == (2, 2)
    assert ("direct", 1, "outputs") not in done
    assert found["arms"]["thinking"][1]["score"] == 0.75
    assert found["tokens"] == 1234

    assert call(monkeypatch, "status", str(run.root)) == 0
    text = capsys.readouterr().out
    assert "not finished" in text
    assert "0.750  [0.650, 0.850]  50.0%" in text
    assert "1:01 of work in all, 1,234 tokens" in text
    assert "\x1b" not in text


def test_a_run_is_finished_when_every_arm_has_every_iteration(run: RunDir) -> None:
    recipe = parse_recipe(TREE)
    assert not status.finished(run, recipe)
    write_json(run.iteration("direct", 1) / "evaluation.json", {})
    assert status.finished(run, recipe)


def test_show_orders_prompts_by_spread_and_outputs_by_score(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "show", str(run.root), "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["spread"], row["format_errors"], row["pair"]) for row in rows] == [
        ("aaaa01", 0.75, 0, "scored"),
        ("aabb02", 0.0, 1, None),
    ]
    assert call(monkeypatch, "show", str(run.root), "--prompt", "aaa", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(item["id"], item["role"], item["response"]) for item in found["outputs"]] == [
        ("o1", "chosen", "A cherry."),
        ("o2", "rejected", "A banana."),
    ]
    assert found["outputs"][0]["thought"] == "red, so"


def test_show_prints_hostile_text_harmlessly(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "show", str(run.root)) == 0
    assert call(monkeypatch, "show", str(run.root), "--prompt", "aabb02") == 0
    text = capsys.readouterr().out
    assert "nice redx" in text
    assert "format error: no_response_marker" in text
    assert not {"\x1b", "\x9b", "\r", "\x07"} & set(text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "a"], "2 prompts' ids begin with 'a'"),
        (["--prompt", "zz"], "no prompt's id begins with 'zz'"),
        (["--iteration", "3"], "those that have: 1"),
        (["--arm", "sideways"], "its arms are thinking, direct"),
        (["--arm", "direct"], "has no scores of the direct arm yet"),
    ],
)
def test_show_says_what_there_is(
    run: RunDir, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "show", str(run.root), *arguments) == 2
    assert said in capsys.readouterr().err


def test_pairs_go_out_as_chat_turns_with_thought_and_response(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines, table = tmp_path / "pairs.jsonl", tmp_path / "deep" / "pairs.parquet"
    assert call(monkeypatch, "export", str(run.root), "pairs", "--out", str(lines)) == 0
    assert call(monkeypatch, "export", str(run.root), "pairs", "--iteration", "1", "--out", str(table)) == 0
    (row,) = [json.loads(text) for text in lines.read_text(encoding="utf-8").splitlines()]
    assert pq.read_table(table).to_pylist() == [row] == pair_rows(reading.open_view(run.root, "thinking", 1, "pairs"))
    assert row["prompt"][-1]["content"].endswith("User query: Name a [red] fruit.")
    assert row["chosen"] == [{"role": "assistant", "content": join(SPECIFIC, "red, so", "A cherry.")}]
    assert row["rejected"] == [{"role": "assistant", "content": join(SPECIFIC, "yellow?", "A banana.")}]


def test_exported_pairs_are_what_trl_takes_for_a_conversational_preference(run: RunDir) -> None:
    from trl.data_utils import is_conversational

    assert is_conversational(pair_rows(reading.open_view(run.root, "thinking", 1, "pairs"))[0])


def test_an_exported_model_brings_its_thought_format(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert call(monkeypatch, "export", str(run.root), "model", "--out", str(out)) == 0
    assert json.loads((out / "config.json").read_text()) == {"model_type": "llama"}
    assert chat.taught(out) == chat.taught(run.iteration("thinking", 1) / "model") == (SPECIFIC, 16)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert call(monkeypatch, "export", str(run.root), "model", "--out", str(out)) == 2
    assert "exists already" in capsys.readouterr().err
    assert call(monkeypatch, "export", str(run.root), "model", "--iteration", "0", "--out", str(tmp_path / "seed")) == 2
    assert "those that have: 1" in capsys.readouterr().err


def test_a_model_from_elsewhere_was_taught_nothing(tmp_path: Path) -> None:
    assert chat.taught(tmp_path) is None
