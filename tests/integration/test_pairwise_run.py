"""A whole run with a pairwise judge behind a real HTTP server, and with a judge that cannot judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from inward.records import Output, Pair, Score, Verdict
from inward.runs.directory import RunDir
from inward.runs.ledger import read_costs
from inward.runs.shards import read_stage
from inward.storage import read_json
from tests.integration.judge_server import READ, WRITTEN, JudgeServer, judge_server
from tests.integration.test_kill import Forks, write_recipe
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow
VALIDATION = 'validation.judge={ kind = "verifiable" }'


KEY = "sk-very-secret-0123456789"
QUICK = ("arms=['direct']", "training.epochs=1")


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path / "cache"))
    with judge_server() as server:
        yield server


def asking(server: JudgeServer, more: str = "") -> str:
    at = f'base_url = "{server.url}", model = "any", key_env = "JUDGE_KEY", retries = 1, price_in = 2e6, price_out = 4e6'
    return f'judge={{ kind = "pairwise", endpoint = {{ {at} }}{more} }}'


def verdict_bytes(run: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.iteration("direct", 1) / "verdicts").glob("part-*.parquet")}


@pytest.fixture
def forks(tmp_path: Path, endpoint: JudgeServer) -> Iterator[Forks]:
    server = Forks(tmp_path / "log.txt")
    yield server
    server.close()


def test_battles_make_scores_and_scores_make_pairs(tmp_path: Path, forks: Forks, endpoint: JudgeServer) -> None:
    asked = endpoint.asked
    recipe, run = write_recipe(tmp_path), RunDir(tmp_path / "run")
    command = ("run", str(recipe), asking(endpoint), VALIDATION, "pairing.rho=auto", "--out", str(run.root))
    assert forks.run(*command) == {"code": 0}, forks.log.read_text()
    folder = run.iteration("thinking", 1)
    outputs = {output.id: output for output in read_stage(folder / "outputs", Output)}
    verdicts = read_stage(folder / "verdicts", Verdict)
    scores = {score.output_id: score for score in read_stage(folder / "scores", Score)}
    pairs = read_stage(folder / "pairs", Pair)
    assert pairs
    assert all(verdict.second is not None and verdict.first != verdict.second for verdict in verdicts)
    assert all(outputs[verdict.first].prompt_id == verdict.prompt_id for verdict in verdicts)
    for pair in pairs:
        assert scores[pair.chosen_id].value is not None
        assert outputs[pair.chosen_id].response is not None
    assert "rho" in read_json(folder / "pairing.json")
    assert all("<R>" in output.text for output in outputs.values()), "every output holds its thought and the marker"
    assert not [text for text in asked if "<R>" in text], "no thought reaches the judge"
    calls = sum(cost.judge_calls for cost in read_costs(run.costs) if cost.stage == "verdicts")
    assert calls >= len(asked) > 0
    before = len(asked)
    assert forks.run(*command) == {"code": 0}
    assert len(asked) == before, "a finished run asks nothing again"


def test_a_judge_that_gives_no_verdict_stops_the_run(tmp_path: Path, forks: Forks) -> None:
    judge_model = tiny_model(tmp_path / "judge", seed=3, context=8192)
    recipe = write_recipe(tmp_path)
    judge = f'judge={{ kind = "pairwise", path = "{judge_model}", dtype = "float32", max_tokens = 16 }}'
    answer = forks.run("run", str(recipe), judge, VALIDATION, "arms=['direct']", "--out", str(tmp_path / "run"))
    assert answer == {"code": 1}, forks.log.read_text()
    said = forks.log.read_text()
    assert "Traceback" not in said, said
    assert "verdict" in said or "judge" in said, said
    assert not (tmp_path / "run" / "direct" / "iter_001" / "pairs").exists(), "nothing unscored enters a pair"


def test_an_endpoint_that_goes_stops_the_run_and_nothing_answered_is_asked_twice(
    tmp_path: Path, forks: Forks, endpoint: JudgeServer
) -> None:
    recipe, run = write_recipe(tmp_path), RunDir(tmp_path / "run")
    command = ("run", str(recipe), asking(endpoint), VALIDATION, *QUICK)
    endpoint.stop_after = 21  # in the middle of a round of all shards, which are judged at the same time
    assert forks.run(*command, "--out", str(run.root)) == {"code": 1}
    said = forks.log.read_text()
    assert said.count("the judge's endpoint") == 1, said
    assert "cannot be reached" in said
    assert "run the same command again" in said
    assert "Traceback" not in said
    stored = verdict_bytes(run)

    endpoint.stop_after = None
    endpoint.start()
    assert forks.run(*command, "--out", str(run.root)) == {"code": 0}, forks.log.read_text()
    assert len(endpoint.answered) > 21
    assert len(set(endpoint.answered)) == len(endpoint.answered), "something answered was asked again"
    assert stored.items() <= verdict_bytes(run).items()

    judging = read_json(run.summary)["judging"]
    answers = len(endpoint.answered)
    assert (judging["answers"], judging["uncounted"]) == (answers, 0), "what was spent before the stop is booked too"
    assert (judging["prompt_tokens"], judging["completion_tokens"]) == (READ * answers, WRITTEN * answers)
    assert judging["money"] == pytest.approx(answers * (READ * 2 + WRITTEN * 4))
    assert judging["retries"] > 0
    assert forks.run("status", str(run.root)) == {"code": 0}
    assert f"judging asked for {answers} answers" in forks.log.read_text()

    whole = RunDir(tmp_path / "whole")
    without = ("run", str(recipe), asking(endpoint, ", cache = false"), VALIDATION, *QUICK, "--out", str(whole.root))
    assert forks.run(*without) == {"code": 0}, forks.log.read_text()
    assert verdict_bytes(whole) == verdict_bytes(run), "neither a stop nor the cache alters a byte"
    written = [path for root in (run.root, whole.root, tmp_path / "cache", forks.log) for path in (root, *root.rglob("*"))]
    assert len(written) > 50
    assert not [path for path in written if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_later_run_asks_only_what_no_run_has_asked(tmp_path: Path, forks: Forks, endpoint: JudgeServer) -> None:
    recipe, runs = write_recipe(tmp_path), [RunDir(tmp_path / name) for name in ("first", "second")]
    command = ("run", str(recipe), asking(endpoint), VALIDATION, *QUICK)
    for run in runs:
        assert forks.run(*command, "--out", str(run.root)) == {"code": 0}, forks.log.read_text()
    assert len(set(endpoint.asked)) == len(endpoint.asked) > 0
    assert verdict_bytes(runs[0]) == verdict_bytes(runs[1])
    assert [read_json(run.summary)["judging"]["answers"] for run in runs] == [len(endpoint.asked), 0]
    assert read_json(runs[1].summary)["judge_calls"] == read_json(runs[0].summary)["judge_calls"]

    changed = asking(endpoint, ", cache = false").replace("retries = 1", "retries = 2, concurrency = 3")
    shard = next((runs[1].iteration("direct", 1) / "verdicts").glob("part-*.parquet"))
    before, content = len(endpoint.asked), shard.read_bytes()
    shard.unlink()
    (runs[1].iteration("direct", 1) / "evaluation.json").unlink()
    assert forks.run("run", str(recipe), changed, VALIDATION, *QUICK, "--out", str(runs[1].root)) == {"code": 0}
    assert len(endpoint.asked) > before, "without the cache it is asked again"
    assert shard.read_bytes() == content
    other = asking(endpoint).replace('"any"', '"another"')
    assert forks.run("run", str(recipe), other, VALIDATION, *QUICK, "--out", str(runs[1].root)) == {"code": 2}


def test_a_cascade_and_routes_ask_the_endpoint_only_where_they_must(
    tmp_path: Path, forks: Forks, endpoint: JudgeServer
) -> None:
    recipe = write_recipe(tmp_path)
    dear = asking(endpoint).removeprefix("judge=")
    cheap = 'first = { kind = "verifiable", strictness = "mean" }'
    cascade = f'judge={{ kind = "cascade", {cheap}, then = {dear}, sure = 0.1 }}'
    run = RunDir(tmp_path / "cascade")
    assert forks.run("run", str(recipe), cascade, VALIDATION, *QUICK, "--out", str(run.root)) == {"code": 0}
    folder = run.iteration("direct", 1)
    counts = read_json(folder / "judges.json")["prompts_by_judge"]
    assert sum(counts.values()) == 6
    verdicts = read_stage(folder / "verdicts", Verdict)
    fought = {verdict.prompt_id for verdict in verdicts if verdict.second is not None}
    assert len(fought) <= counts.get("then", 0)
    assert bool(endpoint.asked) == bool(fought)
    assert read_json(run.summary)["arms"]["direct"][1]["prompts_by_judge"] == counts
    assert forks.run("status", str(run.root)) == {"code": 0}
    assert "Prompts by the judge that ruled on them" in forks.log.read_text()

    before = len(endpoint.asked)
    checked = '[{ verifiable = true, judge = { kind = "verifiable" } }]'
    routed = f'judge={{ kind = "routed", routes = {checked}, otherwise = {dear} }}'
    run = RunDir(tmp_path / "routed")
    assert forks.run("run", str(recipe), routed, VALIDATION, *QUICK, "--out", str(run.root)) == {"code": 0}
    assert len(endpoint.asked) == before, "every prompt here can be checked"
    astray = 'judge={ kind = "routed", routes = [{ source = "prompts.jsonl", judge = { kind = "verifiable" } }] }'
    nowhere = astray.replace("prompts.jsonl", "other.jsonl")
    assert forks.run("run", str(recipe), nowhere, *QUICK, "--out", str(tmp_path / "no")) == {"code": 2}
    assert "is the source of no prompt; there are: 'prompts.jsonl'" in forks.log.read_text()
    assert not (tmp_path / "no" / "direct").exists()
