"""`inward audit` from outside: on a real small run, and with judges behind a real HTTP server asked about gold pairs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from inward.cli.main import main
from inward.judging.pairwise.scripted import answers_in
from inward.records import Score, Verdict
from inward.runs.directory import RunDir
from inward.runs.shards import read_stage, write_shard
from tests.integration.test_kill import Forks, write_recipe
from tests.tiny_reward import tiny_reward_model

SHARED = Path("../shared/data/judging")
VALIDATION = 'validation.judge={ kind = "verifiable" }'
MODULE = [sys.executable, "-m", "inward.cli.main"]
Script = Callable[[str, str], str]


@contextmanager
def server(script: Script, delay: float = 0.0) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Serve a judge that answers with a function of the two answers it reads; yield its address and what it was asked."""
    asked: list[tuple[str, str]] = []

    class Judge(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            pair = answers_in(body["messages"])
            asked.append(pair)
            time.sleep(delay)
            answer = {
                "choices": [{"message": {"role": "assistant", "content": script(*pair)}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5},
            }
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    running = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/v1", asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def longer(first: str, second: str) -> str:
    return "[[A]]" if len(first) > len(second) else "[[B]]"


def first(*_: str) -> str:
    return "It is the first. [[A]]"


def mute(*_: str) -> str:
    return "I would rather not say."


def recipe(folder: Path, judge: str) -> Path:
    path = folder / "judge.toml"
    text = f"""
[model]
path = "smollm2"
[prompts]
sources = [{{ kind = "tasks", count = 8 }}]
[validation]
judge = {{ kind = "verifiable" }}
[judge]
{judge}
"""
    path.write_text(text)
    return path


def behind(url: str) -> str:
    # what is not asked twice here is so by the audit's own folder: the cache of verdicts would know it as well
    return f'kind = "pairwise"\ncache = false\nendpoint = {{ base_url = "{url}", model = "any" }}'


def gold_file(folder: Path, count: int, name: str = "gold.jsonl", **fields: Any) -> Path:
    """Write pairs of which the better one is the longer in odd rows and the shorter in even ones."""
    rows = [
        {"prompt": f"Question {n}?", "response_1": f"short {n}", "response_2": f"a longer one {n}", "label": 1 + n % 2} | fields
        for n in range(count)
    ]
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["inward", "audit", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def audited(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code = call(monkeypatch, *arguments, "--json")
    said = capsys.readouterr()
    assert code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def test_a_judge_beside_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gold = gold_file(tmp_path, 40)
    several = gold_file(tmp_path, 30, "several.jsonl", label=None, annotators=[2, 2, 0])
    with server(longer) as (url, asked):
        command = (recipe(tmp_path, behind(url)), "--gold", gold, "--gold", several, "--out", tmp_path / "kept")
        found = audited(monkeypatch, capsys, *command)["gold"]
        assert len(asked) == 140, "both orders of every pair"
        labels = found["gold"]["labels"]["all"]
        assert labels["accuracy_all"]["value"] == labels["accuracy_scored"]["value"] == 0.5
        assert labels == found["gold"]["longer_labels"]["all"] | {"agreement": labels["agreement"]}
        assert (labels["agreement"]["value"], found["gold"]["longer_wins"]["value"]) == (1.0, 1.0)
        assert (found["gold"]["first_position"]["value"], found["gold"]["errors"]["value"]) == (0.5, 0.0)
        assert found["several"]["classes"] == found["several"]["longer_classes"]
        assert found["several"]["classes"]["accuracy_all"]["value"] == 1.0
        assert found["several"]["people"]["agreement"]["value"] == 1 / 3
        again = audited(monkeypatch, capsys, *command)["gold"]
        assert again == found
        assert len(asked) == 140, "nothing is asked twice"
        assert call(monkeypatch, *command) == 0
    said = capsys.readouterr().out
    for part in ("positional agreement", "0.500 [", "pairs judged the same in both orders", "Cohen's kappa", "three classes"):
        assert part in said, said
    (folder,) = (tmp_path / "kept").glob("gold-*")
    assert len(read_stage(folder / "verdicts", Verdict)) == 80
    assert json.loads((folder / "audit.json").read_text()) == found["gold"]


def test_the_figures_of_a_judge_that_goes_by_position_or_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = gold_file(tmp_path, 24)
    for script, value, agreement, errors in ((first, 0.5, 0.0, 0.0), (mute, 0.0, None, 1.0)):
        with server(script) as (url, _):
            found = audited(monkeypatch, capsys, recipe(tmp_path, behind(url)), "--gold", gold, "--out", tmp_path / "kept")
        figures = found["gold"]["gold"]
        assert figures["labels"]["all"]["accuracy_all"]["value"] == value
        assert figures["labels"]["all"]["agreement"]["value"] == agreement
        assert figures["errors"]["value"] == errors
    assert figures["reasons"] == {"no verdict": 48}
    assert figures["labels"]["all"]["accuracy_scored"] == {"value": None, "low": None, "high": None, "n": 0}
    assert len(list((tmp_path / "kept").glob("gold-*"))) == 2, "another judge's verdicts are kept apart"


def test_a_limit_draws_fewer_and_a_larger_one_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = gold_file(tmp_path, 100)
    with server(longer) as (url, asked):
        command = (recipe(tmp_path, behind(url)), "--gold", gold, "--out", tmp_path / "kept", "--limit")
        assert audited(monkeypatch, capsys, *command, 32)["gold"]["gold"]["pairs"] == 32
        assert len(asked) == 64
        assert audited(monkeypatch, capsys, *command, 96)["gold"]["gold"]["pairs"] == 96
        assert len(asked) == 192, "the first 32 were not asked again"


def test_a_reward_model_scores_both_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_reward_model(tmp_path / "reward")
    gold = gold_file(tmp_path, 40)
    judge = recipe(tmp_path, f'kind = "reward_model"\npath = "{model}"')
    found = audited(monkeypatch, capsys, judge, "--gold", gold, "--out", tmp_path / "kept")["gold"]["gold"]
    assert found["verdicts"] == 80
    assert 0.2 < found["labels"]["all"]["accuracy_all"]["value"] < 0.8
    assert found["consistency"]["value"] is found["labels"]["all"]["agreement"]["value"] is None
    (before,) = (tmp_path / "kept").glob("gold-*")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")  # another model under the same name
    audited(monkeypatch, capsys, judge, "--gold", gold, "--out", tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("gold-*"))) == 2, (
        f"what another model said, {before.name}, is not taken for this one's"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{recipe}"], "has no verdicts yet: give --gold FILE"),
        (["{recipe}", "--gold", "{broken}"], "broken.jsonl, line 2: label must be 1 or 2, not 7"),
        (["{recipe}", "--gold", "{absent}"], "absent.jsonl cannot be read"),
        (["{recipe}", "--gold", "{gold}", "--gold", "{gold}"], "the same name"),
        (["{recipe}", "--gold", "{gold}", "--columns", "prompt"], "NAME=COLUMN"),
        (["{recipe}", "--gold", "{gold}", "--columns", "label=best"], "needs either label"),
        (["{run}", "--limit", "3"], "give --gold FILE with them"),
        (["{run}"], "has no verdicts yet"),
        (["{run}", "judge.strictness=loose"], "give KEY=VALUE with a recipe only"),
        (["{empty}"], "is not a run directory"),
        (["no-such-recipe"], "neither a recipe file nor"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "recipe": recipe(tmp_path, 'kind = "verifiable"'),
        "gold": gold_file(tmp_path, 2),
        "broken": gold_file(tmp_path, 2, "broken.jsonl"),
        "absent": tmp_path / "absent.jsonl",
        "run": tmp_path / "run",
        "empty": tmp_path / "empty",
    }
    names["broken"].write_text(names["gold"].read_text().replace('"label": 2', '"label": 7'))
    names["empty"].mkdir()
    from inward.config import load_recipe
    from inward.runs.opening import prepare

    names["run"].mkdir()
    prepare(RunDir(names["run"]), load_recipe(names["recipe"]), "")
    assert call(monkeypatch, *(argument.format(**names) for argument in arguments)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_audit_goes_on(ending: signal.Signals, tmp_path: Path) -> None:
    gold, kept = gold_file(tmp_path, 96), tmp_path / "kept"
    with server(longer, delay=0.05) as (url, asked):
        command = [*MODULE, "audit", str(recipe(tmp_path, behind(url))), "--gold", str(gold), "--out", str(kept), "--json"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's tests inherit it ignored
        )
        deadline = time.monotonic() + 60
        while not list(kept.glob("*/verdicts/part-*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(ending)
        _, said = process.communicate(timeout=60)
        if ending == signal.SIGINT:
            assert process.returncode == 130, said
            assert "Stopped. What the judge said is kept" in said
            assert f"inward audit {command[4]}" in said, "how to go on"
            assert "Traceback" not in said
        else:
            assert process.returncode == -signal.SIGKILL
        kept_shards = len(list(kept.glob("*/verdicts/part-*.parquet")))
        before = len(asked)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["gold"]["gold"]["longer_wins"]["value"] == 1.0
        assert len(asked) - before == 192 - 64 * kept_shards, "whole shards are not asked again"
        assert kept_shards >= 1


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    started = Forks(tmp_path / "log.txt")
    yield started
    started.close()


@pytest.mark.slow
def test_a_runs_stored_verdicts_and_limits_that_stop_it(
    tmp_path: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, run = write_recipe(tmp_path), RunDir(tmp_path / "run")
    with server(longer) as (url, asked):
        judge = f'judge={{ kind = "pairwise", cache = false, endpoint = {{ base_url = "{url}", model = "any" }} }}'
        command = ("run", str(settings), judge, VALIDATION, "arms=['direct']", "--out", str(run.root), "judge_limits.prompts=4")
        assert forks.run(*command, "judge_limits.max_length_correlation=0.1") == {"code": 1}, forks.log.read_text()
        said = forks.log.read_text()
        for part in ("direct iteration 1", "judge_limits.max_length_correlation = 0.1: ", "'[["):
            assert part in said, said
        assert not (run.iteration("direct", 1) / "pairs").exists(), "nothing was trained on"
        before = len(asked)
        assert forks.run(*command, "judge_limits.max_length_correlation=1") == {"code": 0}, forks.log.read_text()
        assert len(asked) == before, "the verdicts stood"
        found = audited(monkeypatch, capsys, run.root)
        assert len(asked) == before, "what is stored is read"
        gold = audited(monkeypatch, capsys, run.root, "--gold", gold_file(tmp_path, 8), "--limit", 4)["gold"]["gold"]
        assert (gold["verdicts"], gold["consistency"]["value"]) == (8, 1.0)
        assert [path.name.partition("-")[0] for path in (run.root / "audit").iterdir()] == ["gold"]
    stages = {(stage["arm"], stage["iteration"], stage["of"]): stage for stage in found["stages"]}
    assert list(stages) == [
        ("direct", 0, "seed"),
        ("direct", 1, "samples"),
        ("direct", 1, "epoch_01"),
        ("direct", 1, "epoch_02"),
    ]
    samples = stages["direct", 1, "samples"]
    assert samples["complete"]
    assert samples["audit"]["spearman"]["value"] > 0.5
    assert samples["audit"]["outputs"] == 24
    assert 0.0 < samples["audit"]["first_position"]["value"] < 1.0
    assert stages["direct", 0, "seed"]["audit"]["first_position"]["value"] is None
    assert call(monkeypatch, run.root) == 0
    shown = capsys.readouterr().out
    assert "direct iteration 1, samples: " in shown
    assert "direct iteration 0, validation of seed: " in shown
    assert "epoch_01" not in shown
    _interrupted_run_is_audited_as_far_as_it_is(run, monkeypatch, capsys)


def _interrupted_run_is_audited_as_far_as_it_is(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.iteration("direct", 1)
    whole = audited(monkeypatch, capsys, run.root)["stages"][1]["audit"]
    scores = read_stage(folder / "scores", Score)
    for path in (folder / "scores").glob("*"):
        path.unlink()
    assert audited(monkeypatch, capsys, run.root)["stages"][1]["audit"] == whole, "scores follow from verdicts"
    last = max((folder / "verdicts").glob("part-*"))
    last.unlink()
    part = audited(monkeypatch, capsys, run.root)["stages"][1]
    assert not part["complete"]
    assert 0 < part["audit"]["outputs"] < whole["outputs"]
    write_shard(folder / "scores" / "part-00000-0.parquet", Score, scores)


def coin(*texts: str) -> str:
    return "[[A]]" if hashlib.sha256("|".join(texts).encode()).digest()[0] % 2 else "[[B]]"


@pytest.mark.slow
def test_llmbar_and_pandalm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The longer response by a judge equals the longer response by counting; a coin is at chance; people agree as published."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} with LLMBar and PandaLM is not here")
    files = ("--gold", SHARED / "llmbar.jsonl", "--gold", SHARED / "pandalm.jsonl", "--out", tmp_path / "kept")
    with server(longer) as (url, asked):
        found = audited(monkeypatch, capsys, recipe(tmp_path, behind(url)), *files)["gold"]
    llmbar, pandalm = found["llmbar"], found["pandalm"]
    assert len(asked) == 2 * (419 + 900), "PandaLM repeats 99 of its pairs"
    assert (llmbar["pairs"], pandalm["pairs"], pandalm["prompts"], pandalm["no_majority"]) == (419, 999, 170, 0)
    assert set(llmbar["labels"]) >= {"Natural", "Adversarial/Manual", "mean of Adversarial", "mean of subsets"}
    by_length = {name: row["accuracy_all"]["value"] for name, row in llmbar["longer_labels"].items()}
    by_judge = {name: row["accuracy_all"]["value"] for name, row in llmbar["labels"].items()}
    assert by_judge == pytest.approx(by_length, abs=0.02), "they differ where lengths are equal: [[B]] twice, or a tie"
    assert pandalm["classes"]["accuracy_all"]["value"] == pandalm["longer_classes"]["accuracy_all"]["value"]
    assert pandalm["people"]["kappa"] == pytest.approx((0.85 + 0.88 + 0.86) / 3, abs=0.005), "as PandaLM's README has it"
    with server(coin) as (url, _):
        tossed = audited(monkeypatch, capsys, recipe(tmp_path, behind(url)), *files[:2], *files[4:])["gold"]["llmbar"]
    chance = tossed["labels"]["all"]["accuracy_all"]
    assert chance["low"] < 0.5 < chance["high"]
