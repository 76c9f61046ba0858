"""`inward evaluate` on a finished run: every model measured once, resumable, never mixed with another set-up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inward.evaluation.benchmarks.ifeval import accuracies
from inward.records import Constraint, Prompt, Verdict
from tests.build import output
from tests.integration.test_kill import Forks, write_recipe


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    server = Forks(tmp_path / "log.txt")
    yield server
    server.close()


@pytest.mark.slow
def test_every_model_is_measured_and_kept(tmp_path: Path, forks: Forks) -> None:
    recipe, run, prompts = write_recipe(tmp_path), tmp_path / "run", tmp_path / "letters.jsonl"
    rows = [
        {
            "prompt": f"Write without commas about {n}.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for n in range(5)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert forks.run("run", str(recipe), "--out", str(run)) == {"code": 0}, forks.log.read_text()
    evaluate = ("evaluate", str(run), "--prompts", str(prompts))
    assert forks.run(*evaluate) == {"code": 0}, forks.log.read_text()
    stored = run / "benchmarks" / "letters.json"
    first = stored.read_bytes()
    table = json.loads(first)
    assert [(row["arm"], row["iteration"]) for row in table["models"]] == [
        ("thinking", 0),
        ("direct", 0),
        ("thinking", 1),
        ("direct", 1),
    ]
    assert all(row["prompt_strict"]["prompts"] == 5 for row in table["models"])
    shards = sorted(run.rglob("benchmarks/letters/outputs/*.parquet"))
    times = [path.stat().st_mtime_ns for path in shards]
    assert forks.run(*evaluate) == {"code": 0}
    assert stored.read_bytes() == first
    assert [path.stat().st_mtime_ns for path in shards] == times, "nothing is sampled twice"
    assert forks.run(*evaluate, "--limit", "3") == {"code": 2}
    assert "--name" in forks.log.read_text()


def test_a_broken_format_fails_every_constraint() -> None:
    prompt = Prompt(id="p", text="x", source="s", constraints=(Constraint(id="a"), Constraint(id="b")))
    good = output("p.0", response="fine")
    broken = output("p.1", response=None)
    detail = json.dumps(
        {
            "constraints": [
                {"id": "a", "strict": True, "loose": True},
                {"id": "b", "strict": True, "loose": True},
            ]
        }
    )
    verdict = Verdict(id="v", prompt_id="p", judge="j", first=good.id, second=None, value=1.0, unscored=None, detail=detail)
    assert accuracies([prompt], [good, broken], [verdict]) == {
        "prompt_strict": {"p": 0.5},
        "prompt_loose": {"p": 0.5},
        "constraint_strict": {"p": 0.5},
        "constraint_loose": {"p": 0.5},
    }
