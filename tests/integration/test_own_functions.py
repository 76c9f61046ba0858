"""Whole runs with a user's own functions as prompts and judge, and with nothing but a pairwise judge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inward.records import Evaluation, Output, Verdict
from inward.runs.directory import RunDir
from inward.runs.shards import read_stage
from inward.storage import read_json
from tests.integration.judge_server import JudgeServer, judge_server
from tests.integration.test_kill import Forks, write_recipe

pytestmark = pytest.mark.slow

MINE = """
def prompts():
    for number in range(12):
        yield f"Say something about topic {number}."

def score(prompt, responses):
    return [text.count("e") / (1 + len(text)) for text in responses]
"""
QUICK = ("arms=['thinking']", "training.epochs=1")


@pytest.fixture
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forks]:
    monkeypatch.setenv("INWARD_CACHE", str(tmp_path / "cache"))
    server = Forks(tmp_path / "log.txt")
    yield server
    server.close()


def test_a_run_on_own_prompts_with_an_own_judge_and_only_while_both_are_the_same(tmp_path: Path, forks: Forks) -> None:
    recipe, run, mine = write_recipe(tmp_path), RunDir(tmp_path / "run"), tmp_path / "mine.py"
    mine.write_text(MINE)
    settings = (
        f'judge={{ kind = "python", function = "{mine}:score", lowest = 0.0, highest = 1.0, parallel = true }}',
        f'prompts.sources=[{{ kind = "python", function = "{mine}:prompts" }}]',
        "execution.workers=2",
    )
    command = ("run", str(recipe), *settings, *QUICK, "--out", str(run.root))
    assert forks.run(*command) == {"code": 0}, forks.log.read_text()
    verdicts = read_stage(run.iteration("thinking", 1) / "verdicts", Verdict)
    assert {verdict.judge.partition("@")[0] for verdict in verdicts} == {"python(mine.py:score"}
    mine.write_text(MINE.replace('count("e")', 'count("a")'))
    assert forks.run(*command) == {"code": 2}
    assert "judge.function names something else than when the run was begun" in forks.log.read_text()
    mine.write_text(MINE.replace("topic", "theme"))
    assert forks.run(*command) == {"code": 2}
    mine.write_text(MINE.replace("text.count", "text.nocount"))
    assert forks.run(*command[:-1], str(tmp_path / "other")) == {"code": 2}
    assert f"{mine}, line 7: AttributeError: 'str' object has no attribute 'nocount'" in forks.log.read_text()


@pytest.fixture
def endpoint() -> Iterator[JudgeServer]:
    with judge_server() as server:
        yield server


def test_a_recipe_with_nothing_but_a_pairwise_judge_runs(tmp_path: Path, forks: Forks, endpoint: JudgeServer) -> None:
    recipe, run = write_recipe(tmp_path), RunDir(tmp_path / "run")
    judge = f'judge={{ kind = "pairwise", endpoint = {{ base_url = "{endpoint.url}", model = "any" }} }}'
    command = ("run", str(recipe), judge, *QUICK, "--out", str(run.root))
    assert forks.run(*command) == {"code": 0}, forks.log.read_text()
    seed = run.iteration("direct", 0) / "validation" / "seed" / "outputs"
    answers = {output.prompt_id: output.response for output in read_stage(seed, Output)}
    for t in (0, 1):
        stored = read_json(run.iteration("thinking", t) / "evaluation.json")
        evaluation = Evaluation(**stored["evaluations"][stored["chosen"]])
        assert evaluation.score is not None
        assert 0.0 <= evaluation.score <= 1.0
        assert set(evaluation.score_by_prompt) <= set(answers)
    assert not [text for text in endpoint.asked if "<R>" in text], "no thought reaches the judge"
    asked = len(endpoint.asked)
    assert forks.run(*command) == {"code": 0}
    assert len(endpoint.asked) == asked, "a finished run asks nothing again"


def test_both_arms_are_measured_against_the_same_answers(tmp_path: Path, forks: Forks, endpoint: JudgeServer) -> None:
    recipe, run = write_recipe(tmp_path), RunDir(tmp_path / "run")
    judge = f'validation.judge={{ kind = "pairwise", endpoint = {{ base_url = "{endpoint.url}", model = "any" }} }}'
    assert forks.run("run", str(recipe), judge, "training.epochs=1", "--out", str(run.root)) == {"code": 0}, (
        forks.log.read_text()
    )
    seed = read_json(run.iteration("direct", 0) / "evaluation.json")["evaluations"]["seed"]
    assert set(seed["score_by_prompt"].values()) == {0.5}, "the seed's direct answers against themselves"
    assert read_json(run.comparison(1))["prompts"] == len(seed["score_by_prompt"])


def test_answers_of_a_file_are_a_baseline(tmp_path: Path, forks: Forks, endpoint: JudgeServer) -> None:
    recipe, run, file = write_recipe(tmp_path), RunDir(tmp_path / "run"), tmp_path / "answers.jsonl"
    rows = [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    file.write_text("".join(json.dumps({"prompt": text, "response": "An answer."}) + "\n" for text in rows))
    judge = f'validation.judge={{ kind = "pairwise", endpoint = {{ base_url = "{endpoint.url}", model = "any" }} }}'
    command = ("run", str(recipe), judge, f"validation.baseline={file}", *QUICK, "--out", str(run.root))
    assert forks.run(*command) == {"code": 0}, forks.log.read_text()
    assert not (run.root / "direct").exists()
    file.write_text(file.read_text().replace("An answer.", "Another."))
    assert forks.run(*command) == {"code": 2}
    assert "validation.baseline names something else" in forks.log.read_text()
    file.write_text(json.dumps({"prompt": rows[0], "response": "Only one."}) + "\n")
    assert forks.run(*command) == {"code": 2}
    assert "has no answer to" in forks.log.read_text()
