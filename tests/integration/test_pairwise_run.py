"""A whole run with a pairwise judge behind a real HTTP server, and with a judge that cannot judge."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from inward.records import Output, Pair, Score, Verdict
from inward.running.costs import read_costs
from inward.running.rundir import RunDir
from inward.running.shards import read_stage
from inward.storage import read_json
from tests.integration.test_kill import Forks, write_recipe
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow
VALIDATION = 'validation.judge={ kind = "verifiable" }'


class Judge(BaseHTTPRequestHandler):
    """Answers every conversation with a verdict that depends on its text alone; reasons first, as a real judge would."""

    asked: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        text = json.loads(body)["messages"][-1]["content"]
        self.asked.append(text)
        verdict = "[[A]]" if hashlib.sha256(text.encode()).digest()[0] % 2 else "[[B]]"
        answer = {
            "choices": [{"message": {"role": "assistant", "content": f"Both have merit. {verdict}"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Judge,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    server = Forks(tmp_path / "log.txt")
    yield server
    server.close()


def test_battles_make_scores_and_scores_make_pairs(tmp_path: Path, forks: Forks, endpoint: tuple[str, list[str]]) -> None:
    url, asked = endpoint
    recipe, run = write_recipe(tmp_path), RunDir(tmp_path / "run")
    judge = f'judge={{ kind = "pairwise", endpoint = {{ base_url = "{url}", model = "any" }} }}'
    command = ("run", str(recipe), judge, VALIDATION, "pairing.rho=auto", "--out", str(run.root))
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
